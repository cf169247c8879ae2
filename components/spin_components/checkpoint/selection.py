"""Which iterations are worth keeping, and whether to play on: pure functions of the losses so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from spin_components.attempt_settings import SelectionSettings

Decision = Literal["continue", "done", "saturated", "regressed"]


def decide(
    losses: Sequence[float], settings: SelectionSettings, *, max_iterations: int, steps_left: bool = True
) -> Decision:
    """What follows the iteration that just ended.

    Args:
        losses: val_loss of the base model, then of each iteration up to this one.
        settings: `patience` iterations without a fall of more than `min_delta` end the run.
        max_iterations: the most there may be.
        steps_left: whether `max_steps` allows another step.

    Returns: `done` (no iteration is left, or no step), `saturated` or `regressed` (patience is at its end, and this
        iteration is as good as the best, or worse), or `continue`.
    """
    iteration = len(losses) - 2
    if iteration + 1 >= max_iterations or not steps_left:
        return "done"
    if settings.patience and _without_gain(losses, settings.min_delta) >= settings.patience:
        return "regressed" if losses[-1] > min(losses) + settings.min_delta else "saturated"
    return "continue"


def _without_gain(losses: Sequence[float], min_delta: float) -> int:
    best, waited = math.inf, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best - min_delta else (best, waited + 1)
    return waited


def to_prune(losses: Mapping[int, float], save_top_k: int) -> list[int]:
    """Iterations whose weights need not stay: not among the best `save_top_k`, not the last, not the best.

    Args:
        losses: val_loss by iteration.
        save_top_k: how many to keep; -1 for all.
    """
    if save_top_k < 0:
        return []
    ranked = sorted(losses, key=lambda iteration: (losses[iteration], iteration))
    kept = {*ranked[: max(save_top_k, 1)], max(losses)}
    return sorted(iteration for iteration in losses if iteration not in kept)
