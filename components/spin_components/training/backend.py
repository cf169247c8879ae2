"""The interface between the training loop and torch or DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from spin_components.model.compute import Compute
from spin_components.training.parts import Part, Parts


class Backend(Protocol):
    """One rank of training. Gradients of the micro-batches of one global batch add up until `clip_and_step`.

    Attributes:
        rank: of `ranks`.
        compute: this rank's device, and the precision.
        model: the policy.
        needs_filling: whether all ranks must compute as many micro-batches of a global batch, some of weight 0.
    """

    rank: int
    ranks: int
    compute: Compute
    model: Any
    needs_filling: bool

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """Add the gradients of this rank's part of the global batch's mean loss; `is_last` with its last part."""

    def check_gradients(self) -> str | None:
        """Name of a parameter whose gradient is not finite on some rank, or None; before `clip_and_step`."""

    def clip_and_step(self, lr: float) -> float:
        """Clip the gradients to `gradient_clip_val`, update the weights, zero the gradients.

        Returns: the norm of the gradients before clipping.
        """

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks."""

    def agree(self, flag: bool) -> bool:
        """Rank 0's flag, on every rank."""

    def whole(self, parameters: Sequence[Tensor]) -> AbstractContextManager[bool]:
        """Have parameters whole on every rank within the block, which every rank enters.

        Returns a context manager whose value is whether they are whole within the block only.
        """

    def trained_state(self) -> Mapping[str, Tensor] | None:
        """The trainable parameters on rank 0, None elsewhere; every rank calls it."""

    def weight_parts(self) -> Iterator[Part]:
        """What this rank writes of the trainable parameters, as `weight/NAME`; without the other ranks."""

    def optimizer_parts(self) -> Iterator[Part]:
        """What this rank writes of the optimizer's state; without the other ranks."""

    def load_optimizer(self, parts: Parts, num_updates: int) -> None:
        """Load state that any backend saved after `num_updates` updates."""
