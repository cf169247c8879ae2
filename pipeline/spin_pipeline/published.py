"""Finished models of a run, as other commands take them up: to export one, to start another run from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spin_components.checkpoint.decisions import name_of
from spin_components.errors import ConfigError, IntegrityError
from spin_components.lora.files import CONFIG
from spin_components.store import layout
from spin_components.store.digests import FileDigest, digest_of
from spin_components.store.manifests import read_manifest
from spin_components.store.models import model_files
from spin_components.store.run import RunStore


@dataclass(frozen=True, slots=True)
class Published:
    """An iteration whose checkpoint manifest is written; or the base model, where no iteration is better.

    Attributes:
        iteration: `layout.BASE` for the base model.
        uri: address of the policy.
        facts: of the checkpoint; empty for the base model.
        files: of the policy, by name.
    """

    iteration: int
    uri: str
    facts: dict[str, Any]
    files: dict[str, FileDigest]

    @property
    def name(self) -> str:
        """In words."""
        return name_of(self.iteration)

    @property
    def sha256(self) -> str:
        """One digest for the policy."""
        return digest_of(self.files)


def iterations(run: RunStore) -> list[int]:
    """Numbers of the iterations that are published, in order."""
    return sorted(int(key.split("/")[1]) for key in run.list("iterations", "*/checkpoint.json"))


def find_published(run: RunStore, which: str) -> Published:
    """An iteration by its number, or the best model, which may be the base.

    Raises:
        ConfigError: no run is there, or no such iteration; names those that are.
        IntegrityError: its weights are not kept any more, or the run is damaged.
    """
    if not run.exists(layout.RUN):
        raise ConfigError(f"no run at {run.uri}: it has no {layout.RUN}")
    found = iterations(run)
    if not found:
        raise ConfigError(f"no iteration of {run.uri} is finished yet; see `spin-pipeline status {run.uri}`")
    iteration = int(run.read_json(layout.BEST)["iteration"]) if which == "best" else _number(which)
    if iteration == layout.BASE:
        base = str(run.read_json(layout.RUN)["base_model"]["uri"])
        return Published(iteration, base, {}, model_files(run, base))
    if iteration not in found:
        raise ConfigError(f"iteration {which} of {run.uri} is not finished; finished: {', '.join(map(str, found))}")
    facts = read_manifest(run, layout.checkpoint(iteration)).facts
    uri = str(facts["checkpoint_uri"])
    below = run.key_of(uri)
    if below is None:
        raise IntegrityError(f"{run.uri_of(layout.checkpoint(iteration))} names {uri}, which lies outside the run")
    if not run.sizes(below):
        kept = _settings(run).get("selection", {}).get("save_top_k")
        raise IntegrityError(
            f"the weights of iteration {iteration} are gone from {uri}: only the best are kept "
            f"(selection.save_top_k = {kept}), the last, and the best of all. Take one of those"
        )
    return Published(iteration, uri, facts, model_files(run, uri))


def _number(which: str) -> int:
    if not which.isdigit():
        raise ConfigError(f"--iteration {which}: expected a number, or best")
    return int(which)


def _settings(run: RunStore) -> dict[str, Any]:
    return dict(run.read_json(layout.RUN)["settings"])


def forked_values(run: RunStore, which: str) -> dict[str, Any]:
    """Settings for a run that begins where an iteration of another ended: that run's own, with its policy as the base.

    Args:
        run: the other run.
        which: iteration, by number or `best`.

    Returns: section tables, without `run.uri`.

    Raises: as `find_published`.
    """
    published = find_published(run, which)
    values = _settings(run)
    values["run"] = {name: value for name, value in values["run"].items() if name != "uri"}
    return {**values, "model": {**values["model"], **forked_model(run, published)}}


def forked_model(run: RunStore, published: Published) -> dict[str, Any]:
    """What `[model]` says in a forked run.

    Raises:
        ConfigError: the policy is stored as an adapter, which is no model by itself.
    """
    if CONFIG in published.files:
        raise ConfigError(
            f"{published.uri} is stored as an adapter (lora.export = 'adapter'), and a run begins from a whole model. "
            f"Write one with `spin-pipeline export {run.uri} DEST --iteration {published.iteration}`, and name it as "
            "model.base"
        )
    return {
        "base": published.uri,
        "sha256": published.sha256,
        "forked_from": f"{run.uri}, {published.name}",
    }
