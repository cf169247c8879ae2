"""Prints the comparison of a run with its reproduction."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spin_components.store.layout import BASE
from spin_pipeline.runs.reproduction.differences import DATA_ROW, Measure, ReproductionResult

_COLUMNS: tuple[Measure, ...] = (
    *("answers", "log-probs", "loss", "rewards", "grad norm", "val_loss", "weights", "decision"),
)
_NOT_NUMBERS = ("weights", "decision")


def print_result(result: ReproductionResult, console: Console, *, tolerance: float, reasons: Sequence[str]) -> None:
    """Print the greatest differences by iteration, the first mismatch and its possible causes.

    Args:
        result: the comparison.
        console: to print to.
        tolerance: greatest absolute difference of numbers that counts as equal.
        reasons: possible causes of a mismatch, in words.
    """
    rows = [row for row in result.rows() if row != DATA_ROW]
    columns = [name for name in _COLUMNS if any((row, name) in result.num_compared for row in rows)]
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for index, name in enumerate(["iteration", *columns]):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row("base" if row == BASE else str(row), *(_cell(result, row, name, tolerance) for name in columns))
    console.print()
    console.print("greatest differences:", style="dim")
    console.print(table)
    console.print()
    _print_conclusion(result, console, tolerance, reasons)


def _cell(result: ReproductionResult, row: int, name: Measure, tolerance: float) -> Text:
    num, mismatches = result.num_compared.get((row, name)), result.at(row, name)
    if num is None:
        return Text("")
    if name in _NOT_NUMBERS:
        text = "other" if mismatches else "same"
    elif name == "answers":
        is_missing = any(mismatch.kind == "fixed" for mismatch in mismatches)
        text = "missing" if is_missing else f"{sum(mismatch.size for mismatch in mismatches):.0f}/{num}"
    else:
        text = f"{max((mismatch.size for mismatch in mismatches if mismatch.kind == 'number'), default=0.0):.2g}"
        if text == "0" and mismatches:
            text = "other"
    return Text(text, style="yellow" if any(mismatch.exceeds(tolerance) for mismatch in mismatches) else "")


def _print_conclusion(result: ReproductionResult, console: Console, tolerance: float, reasons: Sequence[str]) -> None:
    exceeding = list(result.exceeding(tolerance))
    if not result.mismatches:
        _print(console, "equal: data, answers, log-probabilities, losses, weights and decisions, bit for bit", "green")
        return
    _print(console, f"first mismatch: {result.mismatches[0]}", "" if exceeding else "dim")
    _print(console, "(recorded against reproduced)", "dim")
    if exceeding and tolerance and exceeding[0] is not result.mismatches[0]:
        _print(console, f"first mismatch beyond the tolerance of {tolerance:g}: {exceeding[0]}", "")
    for reason in reasons:
        _print(console, f"  - {reason}", "")
    if exceeding:
        _print(console, "not equal" + (f" within {tolerance:g}" if tolerance else ""), "yellow")
    else:
        _print(console, f"equal within {tolerance:g}", "green")


def _print(console: Console, line: str, style: str) -> None:
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
