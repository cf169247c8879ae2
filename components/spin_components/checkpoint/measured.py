"""What is known of a model when it is judged: its validation, and paired changes from other models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from spin_components.record.bootstrap import Difference, UnpairedDifference
from spin_components.record.decisions import name_of
from spin_components.record.evaluated import Evaluated, title_of
from spin_components.settings.selection import HELD_OUT_MEASURES
from spin_components.store.layout import BASE

Compare = Callable[[int, int], Difference | None]
"""The paired change of val_loss from one model, by its iteration, to another; None with too few answers."""
Changes = Callable[[str, int, int], Difference | None]
"""The change of a measure from one model to another; None where either has none, or too few.

It is a measure of sampled answers (`chrf`, `match`, `ended`, `repetition`), or one of the evaluation."""


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
        evaluated: its value of the measure that decides, where that is one of the evaluation.
    """

    iteration: int
    val_loss: float | None
    repetition_rate: float | None = None
    length_ratio: float | None = None
    chrf: float | None = None
    match: float | None = None
    reference: int = BASE
    evaluated: Evaluated | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares models by a measure; a lower score is better.

    Attributes:
        measure: `selection.measure`, or another one.
        compare: of val_loss.
        changes: of the other measures.
    """

    measure: str
    compare: Compare
    changes: Changes

    def score(self, model: Measured) -> float:
        """The model's measure, negated where higher is better; infinity where it is not known."""
        if self.measure not in HELD_OUT_MEASURES:
            value = model.evaluated.mean if model.evaluated else None
        else:
            value = model.val_loss if self.measure == "nll" else getattr(model, self.measure)
        return math.inf if value is None else value if self._falls(model) else -value

    def change(self, before: Measured, after: Measured) -> Difference | None:
        """The change of the score."""
        found = self._measured_change(before, after)
        return found if found is None or self._falls(after) else _negated(found)

    def is_better(self, model: Measured, other: Measured) -> bool:
        """Whether a model's measure is better than another's.

        Judges may leave answers of either without a score: those of both decide.
        """
        if self.measure not in HELD_OUT_MEASURES and (change := self.change(other, model)):
            return change.mean < 0
        return self.score(model) < self.score(other)

    def words(self, before: Measured, after: Measured, confidence: float) -> str:
        """The change of the measure, as part of a sentence."""
        name, against = after.evaluated.title if after.evaluated else "", name_of(before.iteration)
        name = name if name and self.measure not in HELD_OUT_MEASURES else title_of(self.measure)
        change = self._measured_change(before, after)
        if change is None:
            return f"too few answers to hold {name} against {against}"
        return f"{name} {interval(change, confidence)} against {against}"

    def _falls(self, model: Measured) -> bool:
        """Whether a lower measure is better."""
        if self.measure in HELD_OUT_MEASURES:
            return self.measure == "nll"
        return model.evaluated is not None and model.evaluated.higher_is_better is False

    def _measured_change(self, before: Measured, after: Measured) -> Difference | None:
        """The change of the measure itself."""
        if self.measure == "nll":
            return self.compare(before.iteration, after.iteration)
        return self.changes(self.measure, before.iteration, after.iteration)


def _negated(change: Difference) -> Difference:
    return replace(change, mean=-change.mean, low=-change.high, high=-change.low)


def interval(change: Difference, confidence: float) -> str:
    """A change with its interval."""
    how = ", by standard errors, not paired" if isinstance(change, UnpairedDifference) else ""
    return f"{change.mean:+.4f} ({100 * confidence:g} %: {change.low:+.4f} to {change.high:+.4f}{how})"
