"""An evaluation as numbers and as words; nothing here needs what it was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

JUDGE = "judge"
"""The judge's row, beside `TASK METRIC` of each task."""

Facts = Mapping[str, Any]
"""Of an evaluation's manifest."""


def figures(facts: Facts) -> dict[str, tuple[float, float | None]]:
    """Each number and its standard error, None where there is none, by what it is of."""
    results = facts.get("tasks", {}).get("results", {})
    found = {
        f"{task} {metric}": (number["value"], number["stderr"])
        for task, result in results.items()
        for metric, number in result["metrics"].items()
        if number["value"] is not None
    }
    judged = facts.get("judge", {})
    return {**found, JUDGE: (judged["mean"], judged["stderr"])} if "mean" in judged else found


def tracked(facts: Facts) -> dict[str, float]:
    """The numbers alone, by names that trackers take."""
    return {name.replace(" ", "/"): value for name, (value, _) in figures(facts).items()}


def cell(number: tuple[float, float | None] | None) -> str:
    """A number with its standard error, to three decimals."""
    if number is None:
        return "-"
    value, stderr = number
    return f"{value:.3f}" if stderr is None else f"{value:.3f} ± {stderr:.3f}"


def evaluation_rows(models: Sequence[Facts | None]) -> tuple[list[str], list[list[str]]]:
    """A table of several models: the rows' names, and in each row a cell a model.

    Args:
        models: facts of their evaluations; None where there is none.
    """
    known = [figures(facts) if facts else {} for facts in models]
    names = list(dict.fromkeys(name for found in known for name in found))
    return names, [[cell(found.get(name)) for found in known] for name in names]


def remarks(facts: Facts) -> list[str]:
    """What the numbers leave open: parts that were left out, replies that nobody could read."""
    found = [f"{name}: left out, {part['skipped']}" for name, part in facts.items() if _is_skipped(part)]
    if num := facts.get("judge", {}).get("num_unparsed"):
        total = num + facts["judge"]["num_scored"]
        found.append(f"judge: {num} of {total} replies held no score from 1 to 10, and do not count")
    return found


def summary(facts: Facts) -> str:
    """The first few numbers in one line."""
    found = list(figures(facts).items())
    told = [f"{name} {value:.3f}" for name, (value, _) in found[:3]]
    rest = [f"{len(found) - 3} more"] if len(found) > 3 else []
    return ", ".join([*told, *rest]) or "; ".join(remarks(facts))


def _is_skipped(part: object) -> bool:
    return isinstance(part, Mapping) and "skipped" in part
