"""Two runs held against each other, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spin_components.store.layout import BASE
from spin_pipeline.reproduction.parting import BEFORE, Held, Measure

_COLUMNS: tuple[Measure, ...] = (
    *("answers", "log-probs", "loss", "rewards", "grad norm", "val_loss", "weights", "decision"),
)
_NAMED = ("weights", "decision")


def print_held(held: Held, console: Console, *, tolerance: float, reasons: Sequence[str]) -> None:
    """The greatest differences by iteration, the first place where the runs part, and why that may be.

    Args:
        held: what was found.
        console: to print to.
        tolerance: of numbers.
        reasons: for a difference, in sentences.
    """
    rows = [row for row in held.rows() if row != BEFORE]
    columns = [name for name in _COLUMNS if any((row, name) in held.num for row in rows)]
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for place, name in enumerate(["iteration", *columns]):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row("base" if row == BASE else str(row), *(_cell(held, row, name, tolerance) for name in columns))
    console.print()
    console.print("greatest differences:", style="dim")
    console.print(table)
    console.print()
    _print_verdict(held, console, tolerance, reasons)


def _cell(held: Held, row: int, name: Measure, tolerance: float) -> Text:
    num, found = held.num.get((row, name)), held.at(row, name)
    if num is None:
        return Text("")
    if name in _NAMED:
        text = "other" if found else "same"
    elif name == "answers":
        missing = any(parting.kind == "fixed" for parting in found)
        text = "missing" if missing else f"{sum(parting.size for parting in found):.0f}/{num}"
    else:
        text = f"{max((parting.size for parting in found if parting.kind == 'number'), default=0.0):.2g}"
        if text == "0" and found:
            text = "other"
    return Text(text, style="yellow" if any(parting.counts(tolerance) for parting in found) else "")


def _print_verdict(held: Held, console: Console, tolerance: float, reasons: Sequence[str]) -> None:
    counting = list(held.counting(tolerance))
    if not held.partings:
        _say(console, "equal: data, answers, log-probabilities, losses, weights and decisions, bit for bit", "green")
        return
    _say(console, f"the runs part first at {held.partings[0]}", "" if counting else "dim")
    _say(console, "(recorded against made again)", "dim")
    if counting and tolerance and counting[0] is not held.partings[0]:
        _say(console, f"beyond the tolerance of {tolerance:g} first at {counting[0]}", "")
    for reason in reasons:
        _say(console, f"  - {reason}", "")
    if counting:
        _say(console, "not equal" + (f" within {tolerance:g}" if tolerance else ""), "yellow")
    else:
        _say(console, f"equal within {tolerance:g}", "green")


def _say(console: Console, line: str, style: str) -> None:
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
