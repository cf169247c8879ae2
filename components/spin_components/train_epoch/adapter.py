"""The adapter that an epoch trains: put on the model, and written with what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spin_components.algorithm.order import derive_seed
from spin_components.lora.files import read_weights, write_adapter
from spin_components.lora.layers import add_trained, file_name, load_weights, saved_config
from spin_components.lora.merging import write_merged
from spin_components.store import layout
from spin_components.train_epoch.job import AdapterJob, EpochJob


def begin_adapter(model: Any, job: EpochJob, adapter: AdapterJob) -> None:
    """Have a model train the job's adapter and nothing else: a fresh one, or as the save before left it.

    Raises:
        ConfigError: the model has no such layers.
        IntegrityError: what was saved is of another model.
    """
    add_trained(model, job.settings.lora, seed=derive_seed(job.settings.run.seed, "lora", job.iteration))
    if adapter.folder:
        load_weights(model, read_weights(adapter.folder))


def write_trained(
    job: EpochJob, adapter: AdapterJob, model: Any, trained: Mapping[str, Tensor], folder: Path, *, is_whole: bool
) -> None:
    """Write an adapter and, of a whole epoch, its policy.

    A policy that is stored merged is made from the iteration's reference as it lies in its folder, loaded anew: what
    is on the training device may be divided among ranks.

    Args:
        job: the epoch.
        adapter: the job's.
        model: has the adapter.
        trained: its parameters by name.
        folder: to write below: `adapter/`, `policy/`, or both.
        is_whole: whether the epoch is finished.
    """
    lora = job.settings.lora
    part = "policy" if is_whole and lora.export == "adapter" else layout.ADAPTER
    weights = {file_name(name): tensor for name, tensor in trained.items()}
    write_adapter(folder / part, saved_config(model), weights, adapter.base, job.like)
    if is_whole and lora.export == "merged":
        write_merged(job.policy, [folder / part], job.settings, folder / "policy")
