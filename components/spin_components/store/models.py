"""Models by their immutable address: found, checked, and only then used."""

from __future__ import annotations

from pathlib import Path

from spin_components.errors import IntegrityError
from spin_components.lora.files import BASE, CONFIG, read_base
from spin_components.lora_settings import LoraSettings
from spin_components.settings import Settings
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


def fetch_model(run: RunStore, uri: str, *, what: str) -> Path:
    """The local folder of a model as it is stored, every file checked against its digest; it stays until the run is
    closed. A policy may be stored as an adapter alone; see `open_model`.

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


def open_model(run: RunStore, uri: str, *, what: str) -> Path:
    """The local folder of a plain model, float32 weights and all, made here where only adapters are stored.

    Under `lora.quantize` its weights are what the 4-bit ones compute, of the base model too.

    Raises:
        IntegrityError: a file is missing or altered, or no manifest names the model.
    """
    base, adapters = _layers(run, uri, what=what)
    if not adapters and not _lora(run).is_quantized:
        return base
    from spin_components.lora.merging import write_merged

    folder = run.scratch_folder()
    write_merged(base, adapters, Settings.model_validate(run.read_json(layout.RUN)["settings"]), folder)
    return folder


def open_scored(run: RunStore, uri: str, *, what: str) -> Path:
    """The local folder of a model for `scoring.load_scored`: a plain one, or 4-bit weights with adapters upon them.

    Raises:
        IntegrityError: a file is missing or altered, or no manifest names the model.
    """
    if not _lora(run).is_quantized:
        return open_model(run, uri, what=what)
    from spin_components.lora.merging import write_layered

    folder = run.scratch_folder()
    write_layered(*_layers(run, uri, what=what), folder)
    return folder


def adapter_chain(run: RunStore, uri: str) -> list[Path]:
    """The adapters that lead from the run's base model to a policy, the first one first; fetched and checked.

    They are kept beside merged policies too, so this holds for either form of storage.

    Raises:
        IntegrityError: a file is missing or altered, or no manifest names the model.
    """
    chain: list[Path] = []
    root = run.read_json(layout.RUN)["base_model"]["uri"]
    while uri != root:
        folder = run.key_of(uri) or ""
        epoch = folder.rpartition("/")[0]
        model_files(run, uri)
        manifest = read_manifest(run, f"{epoch}/manifest.json")
        key = folder if CONFIG in manifest.outputs_below(folder) else f"{epoch}/{layout.ADAPTER}"
        found = {f"{key}/{name}": file for name, file in manifest.outputs_below(key).items()}
        if not found:
            raise IntegrityError(f"{uri} was trained without an adapter, so none leads there from the base model")
        made_by = f"{epoch}/manifest.json"
        chain.append(run.fetch(found, what=f"the adapter of {uri}", made_by=made_by) / key)
        uri = read_base(chain[-1]).uri
    return chain[::-1]


def _layers(run: RunStore, uri: str, *, what: str) -> tuple[Path, list[Path]]:
    """The plain model that a model sits on, and the adapters that are stored alone above it, the first one first."""
    adapters: list[Path] = []
    folder = fetch_model(run, uri, what=what)
    while (folder / CONFIG).is_file() and (folder / BASE).is_file():
        adapters.append(folder)
        base = read_base(folder)
        if (found := model_digest(run, base.uri)) != base.sha256:
            raise IntegrityError(
                f"{uri} sits on {base.uri} with the digest {base.sha256:.12}…, but what is there has {found:.12}…"
            )
        folder = fetch_model(run, base.uri, what=f"what {what} sits on")
    return folder, adapters[::-1]


def _lora(run: RunStore) -> LoraSettings:
    return LoraSettings.model_validate(run.read_json(layout.RUN).get("settings", {}).get("lora", {}))
