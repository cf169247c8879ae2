"""A place where two runs part, and all that was held against each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["fixed", "exact", "number"]
"""What a tolerance means to a difference: `fixed`, nothing, it always counts (data, decisions, what is missing);
`exact`, it counts where none is given (sampled answers, weights); `number`, it counts where it is greater."""

Measure = Literal["data", "answers", "log-probs", "loss", "rewards", "grad norm", "val_loss", "weights", "decision"]
"""A column of the table."""

BEFORE = -2
"""The row of what comes before any model is used: the data. The base model's is `layout.BASE`."""


@dataclass(frozen=True, slots=True)
class Parting:
    """A place where two runs recorded different things.

    Attributes:
        row: iteration, `layout.BASE` or `BEFORE`.
        where: in words, as "iteration 1, generations shard 0".
        what: differs, in words, as "3 of 192 answers differ".
        size: greatest difference of a number, in its own unit; how many things differ where they are none.
    """

    row: int
    measure: Measure
    kind: Kind
    where: str
    what: str
    size: float

    def counts(self, tolerance: float) -> bool:
        """Whether the runs are unlike by this alone."""
        if self.kind == "number":
            return not self.size <= tolerance  # NaN counts
        return self.kind == "fixed" or tolerance == 0

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(slots=True)
class Held:
    """Two runs held against each other.

    Attributes:
        partings: every one, in the order of the run.
        num: how many things of a row were compared under a measure; a cell that is not there had none.
    """

    partings: list[Parting] = field(default_factory=list)
    num: dict[tuple[int, Measure], int] = field(default_factory=dict)

    def compared(self, row: int, measure: Measure, num: int = 1) -> None:
        """Count what is compared."""
        self.num[row, measure] = self.num.get((row, measure), 0) + num

    def part(self, row: int, measure: Measure, kind: Kind, where: str, what: str, size: float = 1.0) -> None:
        """Note a difference."""
        self.partings.append(Parting(row, measure, kind, where, what, size))

    def number(self, row: int, measure: Measure, where: str, name: str, old: float | None, new: float | None) -> None:
        """Compare two numbers; None is one that is not finite, or not there."""
        self.compared(row, measure)
        if old is None or new is None:
            if old is not new:
                self.part(row, measure, "fixed", where, f"{name} {_or_none(old)} against {_or_none(new)}", math.inf)
        elif old != new and not (math.isnan(old) and math.isnan(new)):
            self.part(row, measure, "number", where, f"{name} {told_apart(old, new)}", abs(old - new))

    def rows(self) -> list[int]:
        """Rows under which something was compared, in order."""
        return sorted({row for row, _ in self.num})

    def at(self, row: int, measure: Measure) -> list[Parting]:
        """What differs in a cell."""
        return [found for found in self.partings if (found.row, found.measure) == (row, measure)]

    def counting(self, tolerance: float) -> Iterator[Parting]:
        """Partings that make the runs unlike."""
        return (found for found in self.partings if found.counts(tolerance))


def told_apart(old: float, new: float) -> str:
    """Two numbers that differ, with as few digits as show it."""
    for digits in range(4, 17):
        texts = [f"{value:.{digits}g}" for value in (old, new)]
        if texts[0] != texts[1]:
            return " against ".join(texts)
    return f"{old!r} against {new!r}"


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
