"""Results of an evaluation as numbers and as tables; imports neither the harness nor the judge's client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

JUDGE = "judge"
"""Name of the judge's row; rows of tasks are named `TASK METRIC`."""

Facts = Mapping[str, Any]
"""Facts of an evaluation's manifest."""


def figures(facts: Facts) -> dict[str, tuple[float, float | None]]:
    """Return value and standard error, None if unknown, of each metric by name."""
    results = facts.get("tasks", {}).get("results", {})
    numbers = {
        f"{task} {metric}": (number["value"], number["stderr"])
        for task, result in results.items()
        for metric, number in result["metrics"].items()
        if number["value"] is not None
    }
    judge = facts.get("judge", {})
    return {**numbers, JUDGE: (judge["mean"], judge["stderr"])} if "mean" in judge else numbers


def tracked(facts: Facts) -> dict[str, float]:
    """Return the values by metric names that trackers accept."""
    return {name.replace(" ", "/"): value for name, (value, _) in figures(facts).items()}


def cell(number: tuple[float, float | None] | None) -> str:
    """Format a value with its standard error, to three decimals."""
    if number is None:
        return "-"
    value, stderr = number
    return f"{value:.3f}" if stderr is None else f"{value:.3f} ± {stderr:.3f}"


def evaluation_rows(models: Sequence[Facts | None]) -> tuple[list[str], list[list[str]]]:
    """Return a table of several models: names of the rows, and one cell per model for each row.

    Args:
        models: facts of the models' evaluations; None for a model without one.
    """
    columns = [figures(facts) if facts else {} for facts in models]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return names, [[cell(column.get(name)) for column in columns] for name in names]


def remarks(facts: Facts) -> list[str]:
    """Return remarks on parts that were skipped and on replies without a score."""
    lines = [f"{name}: skipped, {part['skipped']}" for name, part in facts.items() if _is_skipped(part)]
    if num := facts.get("judge", {}).get("num_unparsed"):
        total = num + facts["judge"]["num_scored"]
        lines.append(f"judge: {num} of {total} replies had no score from 1 to 10 and are not counted")
    return lines


def summary(facts: Facts) -> str:
    """Return the first three values in one line, or the remarks if there are no values."""
    numbers = list(figures(facts).items())
    first = [f"{name} {value:.3f}" for name, (value, _) in numbers[:3]]
    rest = [f"{len(numbers) - 3} more"] if len(numbers) > 3 else []
    return ", ".join([*first, *rest]) or "; ".join(remarks(facts))


def _is_skipped(part: object) -> bool:
    return isinstance(part, Mapping) and "skipped" in part
