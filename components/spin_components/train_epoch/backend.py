"""What the training loop asks of torch or DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from spin_components.device import Compute


class Backend(Protocol):
    """One rank of training. Gradients of one global batch add up until `apply`."""

    rank: int
    ranks: int
    compute: Compute
    model: Any
    needs_filling: bool
    """Whether every global batch must come as the same number of micro-batches, even where some count nothing."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this rank's part of the global batch's mean loss."""

    def check_gradients(self) -> str | None:
        """Name of a parameter whose gradient is not finite on some rank, or None; before `apply`."""

    def apply(self, lr: float) -> float:
        """Clip, update, and clear the gradients; returns their norm before clipping."""

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks."""

    def agree(self, flag: bool) -> bool:
        """Rank 0's flag, on every rank."""

    def policy_state(self) -> Mapping[str, Tensor] | None:
        """Whole float32 weights on rank 0, None elsewhere; every rank calls it."""

    def trained_state(self) -> Mapping[str, Tensor] | None:
        """The parameters that are trained and no others, on rank 0, None elsewhere; every rank calls it."""

    def save_optimizer(self, folder: Path) -> None:
        """Write optimizer state by parameter, on rank 0; every rank calls it."""

    def load_optimizer(self, folder: Path, num_updates: int) -> None:
        """Take up state that any backend saved after `num_updates` updates."""
