"""Prints a comparison of runs as tables."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spin_components.algorithm.interval import Difference
from spin_components.report.lineage import duration
from spin_components.report.verdict import signed
from spin_pipeline.comparison import ComparedRun, Comparison


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the results of each run, the settings that differ, and the warnings."""
    table = _table("", *(run.label for run in comparison.runs))
    for name, cell in _measures(comparison.runs[0].label).items():
        table.add_row(name, *(Text(cell(run)) for run in comparison.runs))
    console.print()
    console.print(table)
    if any(run.from_base for run in comparison.runs):
        console.print("in brackets: 95 % confidence intervals, over the held-out answers", style="dim")
    console.print()
    if comparison.settings:
        table = _table("setting", *(run.label for run in comparison.runs))
        for name, values in comparison.settings:
            table.add_row(Text(name), *(Text(value or '""') for value in values))
        console.print(table)
    else:
        console.print("no setting differs")
    console.print()
    for run in comparison.runs:
        console.print(f"{run.label}: {run.uri}", highlight=False, markup=False, soft_wrap=True)
    for warning in comparison.warnings:
        console.print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for index, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if index else "left")
    return table


def _measures(first: str) -> dict[str, Callable[[ComparedRun], str]]:
    return {
        "base val_loss": lambda run: _number(run.base_loss, 4),
        "best val_loss": lambda run: _number(run.best_loss, 4),
        "best iteration": lambda run: run.best_name,
        "change from base": lambda run: _change(run.from_base),
        f"change from {first}": lambda run: _change(run.from_first),
        "acc": lambda run: _number(run.acc, 2),
        "margin": lambda run: _number(run.margin, 3),
        "time at work": lambda run: duration(run.work_s),
    }


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _change(change: Difference | None) -> str:
    return f"{signed(change.mean)} ({signed(change.low)} to {signed(change.high)})" if change else "-"
