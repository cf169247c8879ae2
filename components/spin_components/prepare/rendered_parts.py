"""Rendered records in the run's storage, part by part as they come, so that an interrupted `prepare` goes on there."""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from spin_components import __version__
from spin_components.errors import IntegrityError
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest
from spin_components.store.manifests import Manifest, differing, read_manifest

logger = logging.getLogger(__name__)

PART_TOKENS = 2**21
"""Token ids after which a part ends: 8 MiB before compression, some seconds of rendering."""

_NOT_RENDERED = (
    *("data.validation_size", "data.split", "data.shard_by", "data.shard_tokens", "data.deduplicate"),
    *("data.max_train_records", "data.max_validation_records"),
)
"""Settings of the data that matter only once all records are rendered."""

_PACKAGES = ("transformers", "tokenizers", "jinja2", "pyarrow")


def rendering_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the rendered records depend on: data, model, settings, packages, and the code that renders.

    Args:
        inputs: of `prepare`, flat.
    """
    kept = {
        name: value
        for name, value in inputs.items()
        if name.startswith(("data.", "model.", "lora.quantize")) and name not in _NOT_RENDERED
    }
    packages = {f"package {name}": metadata.version(name) for name in _PACKAGES}
    return {**kept, **packages, "python": platform.python_version(), "version": __version__, "code": _code_digest()}


def _code_digest() -> str:
    """SHA-256 of the modules that read, render and store records."""
    sha256 = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(path for folder in ("data", "prepare") for path in (root / folder).glob("*.py")):
        content = path.read_bytes()
        sha256.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return sha256.hexdigest()


@dataclass
class RenderedParts:
    """The parts of one `prepare`, each an Arrow stream; a part counts once the manifest beside the parts lists it.

    Attributes:
        step: the running `prepare`.
        inputs: see `rendering_inputs`.
        outputs: digests of the parts, by key, in order.
    """

    step: Step
    inputs: dict[str, Any]
    outputs: dict[str, FileDigest] = field(default_factory=dict)

    def restore(self) -> dict[str, Any] | None:
        """Take over the parts that an interrupted attempt left; what was made from other inputs is deleted.

        Returns: what `add` got with the last of them; None where there are none.
        """
        run = self.step.run
        if not run.exists(layout.RENDERED_MANIFEST):
            return None
        try:
            manifest = read_manifest(run, layout.RENDERED_MANIFEST)
            if differences := differing(manifest.inputs, self.inputs):
                self._begin_anew(f"was made from other inputs: {'; '.join(differences)}")
                return None
            for key, digest in manifest.outputs.items():
                run.fetch({key: digest}, what="the rendered records")
        except IntegrityError as error:
            self._begin_anew(f"cannot be used: {error}")
            return None
        self.outputs = dict(manifest.outputs)
        logger.info("going on after %d parts that were rendered before", len(self.outputs))
        return dict(manifest.facts)

    def _begin_anew(self, reason: str) -> None:
        self.step.warn(
            f"rendering begins anew: what an interrupted attempt left in {self.step.run.uri_of(layout.RENDERED)} "
            f"{reason}"
        )
        delete_parts(self.step.run)

    def add(self, path: Path, state: Mapping[str, Any]) -> None:
        """Store a part.

        Args:
            path: of the complete file, which is moved away.
            state: what `restore` is to return, as JSON.

        Raises:
            BusyError: another attempt has taken the run.
            IntegrityError: a file that was read outside the run changed meanwhile.
        """
        run, key = self.step.run, layout.rendered_part(len(self.outputs))
        with run.staged(key) as staged:
            shutil.move(path, staged.path)
        self.outputs |= staged.outputs
        made = Manifest(step="prepare (rendered)", inputs=self.inputs, outputs=self.outputs, facts=dict(state))
        self.step.commit(layout.RENDERED_MANIFEST, made)

    def paths(self) -> Iterator[Path]:
        """Local paths of the parts, in order, each fetched and verified when it is reached.

        Raises:
            IntegrityError: a part is missing or altered.
        """
        for key, digest in self.outputs.items():
            yield self.step.run.fetch({key: digest}, what="the rendered records") / key


def delete_parts(run: RunStore) -> None:
    """Delete all parts; their manifest first, so that none is left that lists what is gone."""
    run.delete(layout.RENDERED_MANIFEST)
    run.delete(layout.RENDERED)
