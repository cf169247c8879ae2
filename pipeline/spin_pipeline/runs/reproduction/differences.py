"""Mismatches between a recorded run and its reproduction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["fixed", "exact", "number"]
"""How the tolerance applies to a mismatch: `fixed` ones (data, decisions, missing records) exceed any tolerance;
`exact` ones (sampled answers, weights) exceed a tolerance of 0 only; `number` ones exceed it if they are greater."""

Measure = Literal["data", "answers", "log-probs", "loss", "rewards", "grad norm", "val_loss", "weights", "decision"]
"""What is compared; a column of the table."""

DATA_ROW = -2
"""Row number of the data; the base model's is `layout.BASE`."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A mismatch between the records of two runs.

    Attributes:
        row: iteration, `layout.BASE` or `DATA_ROW`.
        where: location, e.g. "iteration 1, generations shard 0".
        what: description, e.g. "3 of 192 answers differ".
        size: greatest absolute difference, in the unit of the measure; for other kinds than `number`, a count.
    """

    row: int
    measure: Measure
    kind: Kind
    where: str
    what: str
    size: float

    def exceeds(self, tolerance: float) -> bool:
        """Whether it makes the runs unequal."""
        if self.kind == "number":
            return not self.size <= tolerance  # true for NaN
        return self.kind == "fixed" or tolerance == 0

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(slots=True)
class ReproductionResult:
    """Result of comparing a recorded run with its reproduction.

    Attributes:
        mismatches: in the order in which the run produced the compared records.
        num_compared: number of compared items by row and measure; absent if there were none.
    """

    mismatches: list[Mismatch] = field(default_factory=list)
    num_compared: dict[tuple[int, Measure], int] = field(default_factory=dict)

    def count(self, row: int, measure: Measure, num: int = 1) -> None:
        """Add to the number of compared items."""
        self.num_compared[row, measure] = self.num_compared.get((row, measure), 0) + num

    def add(self, row: int, measure: Measure, kind: Kind, where: str, what: str, size: float = 1.0) -> None:
        """Add a mismatch; see `Mismatch`."""
        self.mismatches.append(Mismatch(row, measure, kind, where, what, size))

    def compare(self, row: int, measure: Measure, where: str, name: str, old: float | None, new: float | None) -> None:
        """Compare two numbers; None stands for one that is not finite or missing."""
        self.count(row, measure)
        if old is None or new is None:
            if old is not new:
                self.add(row, measure, "fixed", where, f"{name} {_or_none(old)} against {_or_none(new)}", math.inf)
        elif old != new and not (math.isnan(old) and math.isnan(new)):
            self.add(row, measure, "number", where, f"{name} {format_pair(old, new)}", abs(old - new))

    def rows(self) -> list[int]:
        """Rows with compared items, in order."""
        return sorted({row for row, _ in self.num_compared})

    def at(self, row: int, measure: Measure) -> list[Mismatch]:
        """Mismatches of one cell of the table."""
        return [mismatch for mismatch in self.mismatches if (mismatch.row, mismatch.measure) == (row, measure)]

    def exceeding(self, tolerance: float) -> Iterator[Mismatch]:
        """Mismatches that make the runs unequal."""
        return (mismatch for mismatch in self.mismatches if mismatch.exceeds(tolerance))


def format_pair(old: float, new: float) -> str:
    """Two different numbers, as text with as many digits as needed to distinguish them."""
    for digits in range(4, 17):
        texts = [f"{value:.{digits}g}" for value in (old, new)]
        if texts[0] != texts[1]:
            return " against ".join(texts)
    return f"{old!r} against {new!r}"


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
