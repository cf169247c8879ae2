"""Learning-rate schedules, and settings that are a count or a fraction."""

from __future__ import annotations

import math


def resolve_count(value: int | float, total: int, *, at_least: int = 1) -> int:
    """Resolve a count (int) or a fraction of `total` (float) to a count of at most `total`.

    A fraction above 0 gives at least `at_least`.
    """
    if isinstance(value, float):
        return min(max(at_least, math.floor(value * total)), total) if value > 0 else 0
    return min(value, total)


def learning_rate(
    schedule: str, step: int, *, num_steps: int, num_warmup: int, peak: float, floor: float = 0.0
) -> float:
    """Learning rate of one optimizer step.

    The warm-up is linear and reaches the peak at step `num_warmup`. The decay would reach the floor one step after the
    last, so that no step has a rate of 0.

    Args:
        schedule: constant, linear or cosine.
        step: index within the schedule's span, an iteration or the run, from 0.
        num_steps: steps of the span.
        num_warmup: warm-up steps.
        peak: maximum rate.
        floor: rate at the end of the decay.
    """
    if step < num_warmup:
        return peak * (step + 1) / (num_warmup + 1)
    if schedule == "constant":
        return peak
    progress = (step - num_warmup) / max(num_steps - num_warmup, 1)
    factor = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return floor + (peak - floor) * factor
