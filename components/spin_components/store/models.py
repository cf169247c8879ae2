"""Models by their immutable address: found, checked, and only then used."""

from __future__ import annotations

from pathlib import Path

from spin_components.errors import IntegrityError
from spin_components.store import layout
from spin_components.store.digests import FileDigest, digest_of
from spin_components.store.manifests import read_manifest
from spin_components.store.run import RunStore


def model_files(run: RunStore, uri: str) -> dict[str, FileDigest]:
    """What the files of a model must be: the base model's as `prepare` saw them, a policy's as its epoch wrote them.

    Raises:
        IntegrityError: no manifest of this run names the address.
    """
    base = run.read_json(layout.RUN)["base_model"]
    if uri == base["uri"]:
        return {name: FileDigest.model_validate(file) for name, file in base["files"].items()}
    if place := layout.epoch_of(run.key_of(uri)):
        key = layout.epoch_manifest(*place)
        if run.exists(key) and (files := read_manifest(run, key).outputs_below(f"{layout.epoch(*place)}/policy")):
            return files
    raise IntegrityError(f"{uri} is not a model of the run {run.uri}: no manifest there names it")


def validated_place(run: RunStore, uri: str) -> tuple[int, int]:
    """Iteration and epoch that a model of this run is validated as; see `layout.validation`.

    Raises:
        IntegrityError: it is neither the base model nor a policy of this run.
    """
    if uri == run.read_json(layout.RUN)["base_model"]["uri"]:
        return layout.BASE, 0
    match (run.key_of(uri) or "").split("/"):
        case ["iterations", t, "epochs", e, "policy"] if t.isdigit() and e.isdigit():
            return int(t), int(e)
    raise IntegrityError(f"{uri} is not a model of the run {run.uri}: neither its base model nor one of its policies")


def model_digest(run: RunStore, uri: str) -> str:
    """One SHA-256 for a model; see `model_files` for errors."""
    return digest_of(model_files(run, uri))


def open_model(run: RunStore, uri: str, *, what: str) -> Path:
    """The local folder of a model, every file checked against its digest; it stays until the run is closed.

    Raises:
        IntegrityError: a file is missing or altered, or no manifest names the model.
    """
    files, folder = model_files(run, uri), run.key_of(uri)
    what = f"{what} at {uri}"
    if folder is None:
        return run.sources.fetch_model(uri, files, what=what)
    epoch = folder.rpartition("/")[0]
    made_by = layout.inputs_manifest("model") if folder == layout.BUILTIN_MODEL else f"{epoch}/manifest.json"
    below = {f"{folder}/{name}": digest for name, digest in files.items()}
    return run.fetch(below, what=what, made_by=made_by) / folder
