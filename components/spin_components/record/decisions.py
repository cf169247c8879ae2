"""Names of the outcomes of an iteration and of the decisions after it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from spin_components.store.layout import BASE, WARM_UP, controlled

Outcome = Literal["better", "unclear", "regressed", "drifted"]
Decision = Literal["continue", "roll_back", "done", "saturated", "regressed", "drifted"]

REJECTED = ("regressed", "drifted")
"""Outcomes of iterations that cannot be the best model."""

WORDS = {"unclear": "no clear change", "regressed": "worse"}
"""Words for outcomes and decisions whose names in files differ from them; docs/tuning.md defines each."""


def word_of(name: str) -> str:
    """An outcome or a decision as it is shown."""
    return WORDS.get(name, name)


def name_of(iteration: int) -> str:
    """Name of a model in messages."""
    if (of := controlled(iteration)) is not None:
        return f"the control of iteration {of}"
    return {BASE: "the base model", WARM_UP: "the warm-up"}.get(iteration, f"iteration {iteration}")


def goes_on(decision: str) -> bool:
    """Whether another iteration follows."""
    return decision in ("continue", "roll_back")


def lowest(losses: Mapping[int, float | None], rejected: Collection[int]) -> int:
    """The iteration with the lowest loss of those that are not rejected, the earlier of equals.

    Args:
        losses: val_loss by iteration, with the base model's.
        rejected: iterations that regressed or drifted.
    """
    finite = {t: loss for t, loss in losses.items() if loss is not None and t not in rejected}
    return min(finite, key=lambda t: (finite[t], t))
