"""What is known of a model when it is judged: its validation, and paired changes from other models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from spin_components.record.bootstrap import Difference
from spin_components.record.decisions import name_of
from spin_components.settings.selection import Measure
from spin_components.store.layout import BASE

Compare = Callable[[int, int], Difference | None]
"""The paired change of val_loss from one model, by its iteration, to another; None with too few answers."""
Changes = Callable[[str, int, int], Difference | None]
"""The paired change of a measure of sampled answers (`chrf`, `match`, `ended`, `repetition`) from one model to another;
None where either has none, or too few."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Validation results of a model.

    Attributes:
        iteration: whose policy it is; `layout.BASE` for the base model.
        val_loss: None if it is not finite.
        repetition_rate: of the answers it samples; None if it sampled none.
        length_ratio: likewise.
        chrf: of its greedy answers; None if they were not measured.
        match: likewise.
        reference: the model that it was trained from.
    """

    iteration: int
    val_loss: float | None
    repetition_rate: float | None = None
    length_ratio: float | None = None
    chrf: float | None = None
    match: float | None = None
    reference: int = BASE


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares models by the measure that decides; lower is better.

    Attributes:
        measure: `selection.measure`.
        compare: of val_loss.
        changes: of measures of answers, where higher is better.
    """

    measure: Measure
    compare: Compare
    changes: Changes

    def score(self, model: Measured) -> float:
        """The model's measure, negated where higher is better; infinity where it is not known."""
        value = model.val_loss if self.measure == "nll" else getattr(model, self.measure)
        return math.inf if value is None else value if self.measure == "nll" else -value

    def change(self, before: Measured, after: Measured) -> Difference | None:
        """The change of the score."""
        if self.measure == "nll":
            return self.compare(before.iteration, after.iteration)
        found = self.changes(self.measure, before.iteration, after.iteration)
        return replace(found, mean=-found.mean, low=-found.high, high=-found.low) if found else None

    def words(self, before: Measured, after: Measured, confidence: float) -> str:
        """The change of the measure, as part of a sentence."""
        against = name_of(before.iteration)
        name = "val_loss" if self.measure == "nll" else self.measure
        change = self.change(before, after)
        if change is None:
            return f"too few answers to hold {name} against {against}"
        if self.measure != "nll":
            change = replace(change, mean=-change.mean, low=-change.high, high=-change.low)
        return f"{name} {interval(change, confidence)} against {against}"


def interval(change: Difference, confidence: float) -> str:
    """A change with its interval."""
    return f"{change.mean:+.4f} ({100 * confidence:g} %: {change.low:+.4f} to {change.high:+.4f})"
