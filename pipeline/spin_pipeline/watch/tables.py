"""Prints a run's status and its garbage as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from spin_components.data.pair_counts import in_words
from spin_components.record.decisions import REJECTED, goes_on, name_of, word_of
from spin_components.record.evaluation import evaluation_rows
from spin_components.store.layout import BASE, WARM_UP
from spin_pipeline.runs.garbage import Garbage
from spin_pipeline.runs.status import IterationStatus, RunStatus
from spin_pipeline.watch.text import harmless

_OF_STEP = {"evaluate": "evaluations", "control": "controls"}
_COLUMNS = ("", "val_loss", "acc", "reward actual", "reward generated", "pairs", "seconds", "")


def print_garbage(garbage: Garbage, console: Console, *, dry_run: bool) -> None:
    """Print the files that were deleted, or with `dry_run` would be, and their total size."""
    for key, size in sorted(garbage.files.items()):
        console.print(f"{size:>14,}  {key}", highlight=False, markup=False, soft_wrap=True)
    for name in garbage.unfinished:
        console.print(f"{'unfinished':>14}  {name}", highlight=False, markup=False, soft_wrap=True)
    verb = "would free" if dry_run else "freed"
    console.print(
        f"{verb} {garbage.num_bytes / 2**20:.1f} MiB in {len(garbage.files)} files, and "
        f"{len(garbage.unfinished)} unfinished writes",
        highlight=False,
    )


def print_status(status: RunStatus, console: Console) -> None:
    """Print the base model and every iteration as a table, then the address of the best model and the run's state."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column, name in enumerate(_COLUMNS):
        is_text = column in (0, len(_COLUMNS) - 1)
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not column)
    if status.base.val_loss is not None:
        base_is_best = status.best is not None and status.best.iteration == BASE
        cells = ["base", f"{status.base.val_loss:.4f}", *[""] * (len(_COLUMNS) - 3), "best" if base_is_best else ""]
        table.add_row(*cells, style="green" if base_is_best else "")
    if status.warm_up and status.warm_up.val_loss is not None:
        is_best = status.best is not None and status.best.iteration == WARM_UP
        cells = ["warm-up", f"{status.warm_up.val_loss:.4f}", *[""] * (len(_COLUMNS) - 3), "best" if is_best else ""]
        table.add_row(*cells, style="green" if is_best else "")
    for row in status.iterations:
        is_best = status.best is not None and status.best.iteration == row.iteration
        table.add_row(*_cells(row, is_best), style="green" if is_best else "")
    for control in status.control:
        if control.val_loss is not None:
            cells = [f"control {control.iteration}", f"{control.val_loss:.4f}", *[""] * (len(_COLUMNS) - 2)]
            table.add_row(*cells, style="dim")
    if table.row_count:
        console.print()
        console.print(table)
        console.print()
    _print_evaluations(status, console)
    for line in _pair_notes(status):
        console.print(line, highlight=False, soft_wrap=True)
    for warning in status.warnings:
        console.print(f"! {harmless(warning)}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    for row in status.iterations:
        if row.reason:
            console.print(_verdict(row), style="dim", highlight=False, markup=False, soft_wrap=True)
    for control in status.control[-1:]:
        if control.sentence:
            console.print(control.sentence, highlight=False, markup=False, soft_wrap=True)
    if status.best:
        console.print(f"best: {name_of(status.best.iteration)}, {status.best.uri}", highlight=False, soft_wrap=True)
    _print_state(status, console)


def _print_evaluations(status: RunStatus, console: Console) -> None:
    """Print task metrics and judge scores: one row a metric, one column a model."""
    warm_up = [("warm-up", status.warm_up.evaluation)] if status.warm_up and status.warm_up.evaluation else []
    models = [
        ("base", status.base.evaluation),
        *warm_up,
        *((f"it. {row.iteration}", row.evaluation) for row in status.iterations),
        *((f"control {row.iteration}", row.evaluation) for row in status.control if row.evaluation),
    ]
    names, rows = evaluation_rows([facts for _, facts in models])
    if not names:
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("evaluation")
    for name, _ in models:
        table.add_column(name, justify="right")
    for name, cells in zip(names, rows, strict=True):
        table.add_row(name, *cells)
    console.print(table)
    console.print()


def _pair_notes(status: RunStatus) -> list[str]:
    """Notes on the column of pairs: dropped pairs, and the meaning of `own + history`."""
    dropped = [(row.iteration, in_words(row.dropped)) for row in status.iterations]
    lines = [f"iteration {iteration} dropped of its own pairs: {words}" for iteration, words in dropped if words]
    if any(row.num_history for row in status.iterations):
        lines.insert(0, "pairs: the iteration's own + those from earlier iterations")
    return lines


def _cells(row: IterationStatus, is_best: bool) -> list[str]:
    numbers = (row.acc, row.rewards_actual_mean, row.rewards_generated_mean)
    return [
        f"iteration {row.iteration}",
        "not finite" if row.val_loss is None else f"{row.val_loss:.4f}",
        *("-" if number is None else f"{number:.3f}" for number in numbers),
        f"{row.num_pairs - row.num_history} + {row.num_history}" if row.num_history else str(row.num_pairs),
        f"{row.work_s:.0f}",
        "best" if is_best else word_of(row.outcome) if row.outcome in REJECTED else "",
    ]


def _verdict(row: IterationStatus) -> str:
    """Outcome of an iteration, its reason, and the decision where that is not implied."""
    text = f"iteration {row.iteration}: {word_of(row.outcome)}, {row.reason}"
    if row.decision == "roll_back" and row.next is not None:
        return f"{text}; rolled back to {name_of(row.next)}"
    return text if row.decision in ("continue", "done", row.outcome) else f"{text}: {row.decision}"


def _print_state(status: RunStatus, console: Console) -> None:
    if status.failure:
        failure = status.failure
        is_over = bool(status.iterations) and not goes_on(status.iterations[-1].decision)
        if failure["step"] in _OF_STEP and is_over:  # else the verdict waits for it
            console.print(
                f"training is complete; the same command runs the {_OF_STEP[failure['step']]} that are missing",
                highlight=False,
            )
        numbers = (
            f"{name} {failure[name]}" for name in ("iteration", "epoch", "shard") if failure.get(name, BASE) > BASE
        )
        console.print(
            f"failed in {' '.join((failure['step'], *numbers))}: {failure['error']}", style="red", highlight=False
        )
        console.print(harmless(str(failure["message"])), markup=False, highlight=False, soft_wrap=True)
    elif status.state == "done":
        console.print(f"done: {status.run_uri}", highlight=False, soft_wrap=True)
    elif status.state == "running":
        console.print("running")
    else:
        console.print(f"{status.state} before the end; the same command resumes", style="yellow", highlight=False)
