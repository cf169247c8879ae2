"""Merges the adapters of a run up to an iteration into one adapter for the base model."""

from __future__ import annotations

from pathlib import Path

from spin_components.errors import ConfigError
from spin_components.lora.files import BASE, Base, write_adapter
from spin_components.store import layout
from spin_components.store.digests import FileDigest, digest_of
from spin_components.store.models import adapter_chain
from spin_components.store.run import RunStore
from spin_pipeline.published import Published


def joined_adapter(run: RunStore, published: Published) -> Path:
    """Write the merged adapter to a folder that peft can load, which is deleted when the run is closed.

    Raises:
        ConfigError: the run trains all weights, or the policy is the base model itself.
        IntegrityError: an adapter is missing or altered.
    """
    record = run.read_json(layout.RUN)
    if not record["settings"].get("lora", {}).get("r"):
        raise ConfigError(f"{run.uri} trains all weights (lora.r = 0), so there is no adapter; leave --adapter out")
    from spin_components.lora.merging import joined

    base = record["base_model"]
    chain = adapter_chain(run, published.uri)
    if not chain:
        raise ConfigError(
            f"{published.name} of {run.uri} has no adapter: it is {base['uri']} itself; name an --iteration that was "
            "trained, or leave --adapter out"
        )
    digests = {name: FileDigest.model_validate(file) for name, file in base["files"].items()}
    folder = run.scratch_folder()
    base_model = Base(uri=base["uri"], sha256=digest_of(digests))
    write_adapter(folder, *joined(chain), base_model, like=chain[-1])
    (folder / BASE).unlink()  # this file is not part of peft's format; the model card names the base model
    return folder
