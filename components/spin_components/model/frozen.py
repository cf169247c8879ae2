"""Loading of models that are not trained: whole on a device, or divided among the ranks of a job."""

from __future__ import annotations

import gc
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import distributed as dist

from spin_components.model.compute import Compute
from spin_components.model.frozen_weights import FrozenWeights
from spin_components.model.loading import load_model
from spin_components.model.sharded import ShardedModel
from spin_components.settings.run import ModelSettings

logger = logging.getLogger(__name__)

_WAIT = timedelta(hours=2)
"""How long a rank waits for another in one gather: while that one loads its weights, or computes between two passes."""


class FrozenLoader(Protocol):
    """Loads a model that is not trained, one after the other."""

    def load(self, folder: Path, settings: ModelSettings) -> Any:
        """Load a model in Hugging Face layout; raises as `loading.load_model`."""

    def finish(self) -> None:
        """End the work with the model that was loaded last, which is then not called again; every rank does so."""

    def agree(self, flag: bool) -> bool:
        """Whether a flag is set on every rank that holds a part of the model; called after `finish`."""

    def close(self) -> None:
        """Leave the other ranks; not after an error, when some of them may wait in a gather."""


class WholeLoader:
    """Loads models whole; see `FrozenLoader`."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    def load(self, folder: Path, settings: ModelSettings) -> Any:
        device = self._compute.device
        weights = FrozenWeights(device, is_bf16=self._compute.precision == "bf16")
        return load_model(folder, settings, device=device, frozen=weights)

    def finish(self) -> None:
        pass

    def agree(self, flag: bool) -> bool:
        return flag

    def close(self) -> None:
        pass


class ShardedLoader:
    """Loads models with their weights divided among the processes that torchrun started; see `FrozenLoader`.

    Attributes:
        model: the one that was loaded last; None before, and after `finish`.
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self.model: ShardedModel | None = None
        is_cpu = compute.device.type == "cpu"
        if not is_cpu:
            torch.cuda.set_device(compute.device)
        dist.init_process_group("gloo" if is_cpu else "nccl", timeout=_WAIT)

    def load(self, folder: Path, settings: ModelSettings) -> Any:
        gc.collect()  # of the model before: its hooks and modules refer to each other
        device, is_bf16 = self._compute.device, self._compute.precision == "bf16"
        weights = FrozenWeights(device, is_bf16=is_bf16, rank=dist.get_rank(), ranks=dist.get_world_size())
        model = load_model(folder, settings, device=device, frozen=weights)
        self.model = ShardedModel(model, weights, device)
        return model

    def finish(self) -> None:
        if self.model is not None:
            self.model.join()
            held, peak = (size / 2**20 for size in (self.model.held_bytes, self.model.peak_bytes))
            logger.info("a rank held %.1f MiB of weights, and %.1f MiB in its passes", held, peak)
            self.model = None

    def agree(self, flag: bool) -> bool:
        lacking = torch.tensor([0 if flag else 1], device=self._compute.device)
        dist.all_reduce(lacking)
        return not int(lacking)

    def close(self) -> None:
        dist.destroy_process_group()
