"""Learning rate and counts as pure functions of the step."""

from __future__ import annotations

import math


def resolve_count(value: int | float, total: int, *, at_least: int = 1) -> int:
    """How many of `total`: a fraction is a share of it, a count is itself, neither more than all.

    A fraction above 0 gives at least `at_least`.
    """
    if isinstance(value, float):
        return min(max(at_least, math.floor(value * total)), total) if value > 0 else 0
    return min(value, total)


def learning_rate(
    schedule: str, step: int, *, num_steps: int, num_warmup: int, peak: float, floor: float = 0.0
) -> float:
    """Learning rate of one optimizer step.

    Warm-up rises linearly and reaches the peak on step `num_warmup`; the decay after it would reach the floor
    just past the last step, so that no step is wasted at zero.

    Args:
        schedule: constant, linear or cosine.
        step: within the iteration, from 0.
        num_steps: in the iteration.
        num_warmup: steps of warm-up.
        peak: highest rate.
        floor: where the decay ends.
    """
    if step < num_warmup:
        return peak * (step + 1) / (num_warmup + 1)
    if schedule == "constant":
        return peak
    done = (step - num_warmup) / max(num_steps - num_warmup, 1)
    share = 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return floor + (peak - floor) * share
