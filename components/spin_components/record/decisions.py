"""Names of the outcomes of an iteration and of the decisions after it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from spin_components.store.layout import BASE

Outcome = Literal["better", "unclear", "regressed"]
Decision = Literal["continue", "roll_back", "done", "saturated", "regressed"]


def name_of(iteration: int) -> str:
    """Name of a model in messages."""
    return "the base model" if iteration == BASE else f"iteration {iteration}"


def goes_on(decision: str) -> bool:
    """Whether another iteration follows."""
    return decision in ("continue", "roll_back")


def lowest(losses: Mapping[int, float | None], regressed: Collection[int]) -> int:
    """The iteration with the lowest loss of those that did not regress, the earlier of equals.

    Args:
        losses: val_loss by iteration, with the base model's.
        regressed: iterations that regressed.
    """
    finite = {t: loss for t, loss in losses.items() if loss is not None and t not in regressed}
    return min(finite, key=lambda t: (finite[t], t))
