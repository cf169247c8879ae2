"""Access to the models of a run by address; every file is verified before it is used."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from spin_components.errors import IntegrityError
from spin_components.model.lora.files import BASE, CONFIG, read_base
from spin_components.settings.settings import Settings
from spin_components.settings.training import LoraSettings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest, digest_of
from spin_components.store.keys import check_key
from spin_components.store.manifests import read_manifest
from spin_components.store.model_files import link_model


def model_files(run: RunStore, uri: str) -> dict[str, FileDigest]:
    """Return digests of a model's files by name: from `run.json` for the base model, else from its epoch's manifest.

    Raises:
        IntegrityError: the address is not a model of this run.
    """
    base = run.read_json(layout.RUN)["base_model"]
    if uri == base["uri"]:
        return base_files(run)
    if epoch := layout.epoch_of(run.key_of(uri)):
        key = layout.epoch_manifest(*epoch)
        if run.exists(key) and (files := read_manifest(run, key).outputs_below(f"{layout.epoch(*epoch)}/policy")):
            return files
    raise IntegrityError(f"{uri} is not a model of the run {run.uri}: none of its manifests lists it")


def base_files(run: RunStore) -> dict[str, FileDigest]:
    """Return digests of the base model's files by name, from `run.json`.

    Raises:
        IntegrityError: a name leads out of the model's folder, or a digest is none.
    """
    where = run.uri_of(layout.RUN)
    try:
        files = run.read_json(layout.RUN)["base_model"]["files"]
        return {check_key(name, where=where): FileDigest.model_validate(file) for name, file in files.items()}
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise IntegrityError(
            f"{where}: base_model.files does not hold a size and a SHA-256 for each file; restore the original record"
        ) from error


def validated_epoch(run: RunStore, uri: str) -> tuple[int, int]:
    """Return the iteration and epoch under which a model's validation is stored; see `layout.validation`.

    Raises:
        IntegrityError: the address is neither the base model nor a policy of this run.
    """
    if uri == run.read_json(layout.RUN)["base_model"]["uri"]:
        return layout.BASE, 0
    if epoch := layout.epoch_of(run.key_of(uri)):
        return epoch
    raise IntegrityError(f"{uri} is not a model of the run {run.uri}: neither its base model nor one of its policies")


def model_digest(run: RunStore, uri: str) -> str:
    """Return one SHA-256 over a model's files; raises as `model_files`."""
    return digest_of(model_files(run, uri))


def fetch_model(run: RunStore, uri: str, *, what: str) -> Path:
    """Return a local folder with the stored files of a model, verified; it exists until the run is closed.

    A policy may be stored as an adapter only; see `open_model`. A file beside a base model, such as an adapter, is
    left out.

    Raises:
        IntegrityError: a file is missing or altered, or the address is not a model of this run.
    """
    files, folder = model_files(run, uri), run.key_of(uri)
    what = f"{what} at {uri}"
    if folder is None:
        fetched = run.sources.fetch_model(uri, files, what=what)
        config = json.loads((fetched / "config.json").read_bytes())
        return link_model(fetched, config, run.scratch_folder())
    epoch = folder.rpartition("/")[0]
    made_by = layout.inputs_manifest("model") if folder == layout.BUILTIN_MODEL else f"{epoch}/manifest.json"
    below = {f"{folder}/{name}": digest for name, digest in files.items()}
    return run.fetch(below, what=what, made_by=made_by) / folder


def open_model(run: RunStore, uri: str, *, what: str, trust_remote_code: bool | None = None) -> Path:
    """Return a local folder with the full float32 weights of a model, merging adapters if only those are stored.

    With `lora.quantize` the weights are the dequantized 4-bit ones, for the base model too.

    Args:
        run: the run.
        uri: address of the model.
        what: name of the model, for the error.
        trust_remote_code: whether code in the base model's folder may run; None for the run's own steps, whose
            `prepare` was told.

    Raises:
        IntegrityError: a file is missing or altered, or the address is not a model of this run.
    """
    base, adapters = _layers(run, uri, what=what)
    if not adapters and not _lora(run).is_quantized:
        return base
    from spin_components.model.lora.merging import write_merged

    folder = run.scratch_folder()
    settings = Settings.model_validate(run.read_json(layout.RUN)["settings"])
    if trust_remote_code is not None:
        model = settings.model.model_copy(update={"trust_remote_code": trust_remote_code})
        settings = settings.model_copy(update={"model": model})
    write_merged(base, adapters, settings, folder)
    return folder


def open_scored(run: RunStore, uri: str, *, what: str) -> Path:
    """Return a local folder for `scoring.load_scored`: full weights, or 4-bit weights with adapters on top.

    Raises:
        IntegrityError: a file is missing or altered, or the address is not a model of this run.
    """
    if not _lora(run).is_quantized:
        return open_model(run, uri, what=what)
    from spin_components.model.lora.merging import write_layered

    folder = run.scratch_folder()
    write_layered(*_layers(run, uri, what=what), folder)
    return folder


def adapter_chain(run: RunStore, uri: str) -> list[Path]:
    """Return local folders of the adapters between the base model and a policy, in order of training, verified.

    Adapters are stored for merged policies too.

    Raises:
        IntegrityError: a file is missing or altered, a policy has no adapter, or the address is no model of this run.
    """
    chain: list[Path] = []
    root = run.read_json(layout.RUN)["base_model"]["uri"]
    while uri != root:
        folder = run.key_of(uri) or ""
        epoch = folder.rpartition("/")[0]
        model_files(run, uri)
        manifest = read_manifest(run, f"{epoch}/manifest.json")
        key = folder if CONFIG in manifest.outputs_below(folder) else f"{epoch}/{layout.ADAPTER}"
        files = {f"{key}/{name}": file for name, file in manifest.outputs_below(key).items()}
        if not files:
            raise IntegrityError(f"{uri} was trained without an adapter, so it is not the base model plus adapters")
        made_by = f"{epoch}/manifest.json"
        chain.append(run.fetch(files, what=f"the adapter of {uri}", made_by=made_by) / key)
        uri = run.resolve(read_base(chain[-1]).uri)
    return chain[::-1]


def _layers(run: RunStore, uri: str, *, what: str) -> tuple[Path, list[Path]]:
    """Fetch a model and the models below it: a folder with full weights, and the adapters in order of training."""
    adapters: list[Path] = []
    folder = fetch_model(run, uri, what=what)
    while (folder / CONFIG).is_file() and (folder / BASE).is_file():
        adapters.append(folder)
        base = read_base(folder)
        below = run.resolve(base.uri)
        if (sha256 := model_digest(run, below)) != base.sha256:
            raise IntegrityError(
                f"{uri} was trained on {below} with SHA-256 {base.sha256:.12}…, but that model now has "
                f"{sha256:.12}…; restore its files"
            )
        folder = fetch_model(run, below, what=f"the model below {what}")
    return folder, adapters[::-1]


def _lora(run: RunStore) -> LoraSettings:
    return LoraSettings.model_validate(run.read_json(layout.RUN).get("settings", {}).get("lora", {}))
