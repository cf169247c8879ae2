"""The LoRA adapter that an epoch trains: added to the model, and saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spin_components.algorithm.batching import derive_seed
from spin_components.model.lora.files import read_weights, write_adapter
from spin_components.model.lora.layers import add_trained, file_name, load_weights, saved_config
from spin_components.model.lora.merging import write_merged
from spin_components.store import layout
from spin_components.store.moving import relative
from spin_components.training.job import AdapterJob, EpochJob


def begin_adapter(model: Any, job: EpochJob, adapter: AdapterJob) -> None:
    """Add the job's adapter to a model, fresh or as saved before, as its only trainable parameters.

    Raises:
        ConfigError: the model has none of the layers that `[lora]` names.
        IntegrityError: the saved adapter is for another model.
    """
    add_trained(model, job.settings.lora, seed=derive_seed(job.settings.run.seed, "lora", job.iteration))
    if adapter.folder:
        load_weights(model, read_weights(adapter.folder))


def write_trained(
    job: EpochJob, adapter: AdapterJob, model: Any, trained: Mapping[str, Tensor], folder: Path, *, is_whole: bool
) -> None:
    """Write an adapter and, at the end of an epoch, the policy.

    A merged policy is made from the files of the iteration's reference, because the model on the training device may
    be sharded.

    Args:
        job: the epoch.
        adapter: the job's adapter.
        model: the model that has the adapter.
        trained: the adapter's parameters by name.
        folder: gets `adapter/`, `policy/`, or both.
        is_whole: whether the epoch is finished.
    """
    lora = job.settings.lora
    part = "policy" if is_whole and lora.export == "adapter" else layout.ADAPTER
    weights = {file_name(name): tensor for name, tensor in trained.items()}
    base = adapter.base.model_copy(update={"uri": relative(adapter.base.uri, job.run_uri)})
    write_adapter(folder / part, saved_config(model), weights, base, job.like, address=adapter.base.uri)
    if is_whole and lora.export == "merged":
        write_merged(job.policy, [folder / part], job.settings, folder / "policy")
