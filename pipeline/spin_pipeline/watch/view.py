"""Draws the state of a run as lines of text, for any width from 60 columns and any height."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from spin_components.record.decisions import name_of
from spin_components.store.layout import BASE, WARM_UP
from spin_pipeline.watch.model import ProgressStatus, RunModel, StepState
from spin_pipeline.watch.steps import DagRow, rows
from spin_pipeline.watch.text import clean, duration, fit, number, sparkline, wrapped

MIN_WIDTH = 60
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ICONS: dict[StepState, tuple[str, str]] = {
    "waiting": ("·", "dim"),
    "running": ("", "cyan"),
    "done": ("✓", "green"),
    "reused": ("✓", "dim"),
    "failed": ("✗", "red"),
    "stopped": ("■", "yellow"),
    "interrupted": ("!", "yellow"),
}
_LABEL, _TIME, _CELL = 16, 9, 29
_METRICS: tuple[tuple[str, Callable[[dict[str, float]], float | None]], ...] = (
    ("loss", lambda row: row.get("loss")),
    ("acc", lambda row: row.get("acc")),
    ("margin", lambda row: _difference(row.get("rewards_actual_mean"), row.get("rewards_generated_mean"))),
    ("actual", lambda row: row.get("rewards_actual_mean")),
    ("generated", lambda row: row.get("rewards_generated_mean")),
    ("grad norm", lambda row: row.get("grad_norm")),
    ("lr", lambda row: row.get("lr")),
    ("s a step", lambda row: row.get("step_time")),
)
_SAMPLE_S = 6.0


@dataclass(frozen=True, slots=True)
class Frame:
    """Input of a drawing beside the run's events.

    Attributes:
        uri: address of the run.
        now: seconds since 1970.
        state: state of the run in a few words.
        style: rich style of `state`.
        notice: warning of the viewer itself; empty for none.
        is_last: whether this is the final drawing.
    """

    uri: str
    now: float
    state: str
    style: str = ""
    notice: str = ""
    is_last: bool = False


def draw(model: RunModel, frame: Frame, width: int, height: int) -> list[Text]:
    """Draw the run in at most `height` lines of at most `width` cells.

    If there is not enough space, parts are left out in this order: the sample, warnings, metrics; never the head.
    """
    width = max(width, MIN_WIDTH)
    head = _head(model, frame, width)
    metrics, warnings, sample = _metrics(model, width), _warnings(model, frame, width), _sample(model, frame, width)
    room = max(height - len(head), 2)
    steps = [_step(row, frame, width) for row in rows(model, room)]
    blocks, room = [steps], room - len(steps)
    for block, smallest in ((metrics, 2), (warnings, 1), (sample, 4)):
        taken = block[: max(0, room - 1)]
        if len(taken) >= min(smallest, len(block)) and taken:
            blocks.append(taken)
            room -= len(taken) + 1
    order = [
        steps,
        *[block for name in (metrics, sample, warnings) for block in blocks[1:] if block[0] is _first(name)],
    ]
    lines = list(head)
    for index, block in enumerate(order):
        lines += [Text()] * bool(index) + block
    return lines[:height]


def _first(block: list[Text]) -> Text | None:
    return block[0] if block else None


def _head(model: RunModel, frame: Frame, width: int) -> list[Text]:
    name = model.plan.name if model.plan else "run"
    parts = [frame.state]
    if model.attempts > 1:
        parts.append(f"attempt {model.attempts}")
    if model.started is not None:
        end = frame.now if not frame.is_last else model.latest or frame.now
        parts.append(duration(end - model.started))
    right = ", ".join(parts)
    left = fit(f"{clean(name)}  {clean(frame.uri)}", max(width - len(right) - 2, 8))
    line = Text(left, style="bold")
    line.append("  ")
    line.append(fit(right, min(len(right), width - cell_len(left) - 2)), style=frame.style)
    return [line, Text()]


def _step(row: DagRow, frame: Frame, width: int) -> Text:
    icon, style = _ICONS[row.state]
    if row.state == "running":
        icon = "▸" if frame.is_last else _SPINNER[int(frame.now * 8) % len(_SPINNER)]
    line = Text()
    line.append(f"{'  ' * row.indent}{icon} ", style=style)
    line.append(fit(row.label, _LABEL - 2 * row.indent), style="bold" if row.state == "running" else style)
    middle = width - 2 - _LABEL - _TIME - 1
    if row.state == "running" and row.work:
        _bar(line, row.work, middle, with_note=row.note)
    else:
        text = row.note if row.state != "running" or row.label.startswith("iteration") or row.note else "…"
        line.append(fit(clean(text), middle), style="" if row.state in ("done", "running") else style)
    elapsed = ""
    if row.started is not None:
        elapsed = duration((frame.now if row.state == "running" else row.ended or row.started) - row.started)
    line.append(f" {elapsed:>{_TIME}}" if row.state not in ("waiting", "reused") else " " * (_TIME + 1), style="dim")
    return line


def _bar(line: Text, work: ProgressStatus, width: int, *, with_note: str) -> None:
    """Append a progress bar with counts, and time left, rate and tokens/s as far as they fit."""
    counts = f"{work.done:,.0f}/{work.total:,.0f} {work.unit}"
    if work.what:
        counts = fit(clean(work.what), min(cell_len(work.what), 24)).rstrip() + f" {counts}"
    extras = [f"{duration(work.eta_s)} left"] if work.eta_s is not None and work.done < work.total else []
    if with_note:
        extras.append(with_note)
    if work.rate:
        extras.append(f"{number(work.rate)}/s")
    if work.tokens_per_s:
        extras.append(f"{work.tokens_per_s:,.0f} tokens/s")
    text = counts
    for extra in extras:
        if len(text) + len(extra) + 2 + 8 <= width:
            text += f"  {extra}"
    length = min(max(width - cell_len(text) - 2, 0), 30)
    share = min(max(work.done / work.total, 0.0), 1.0) if work.total > 0 else 0.0
    full = round(share * length)
    line.append("━" * full, style="cyan")
    line.append("─" * (length - full), style="bright_black")
    line.append(fit(f"  {text}" if length else text, width - length))


def _metrics(model: RunModel, width: int) -> list[Text]:
    """The newest value and a sparkline of each metric, in as many columns as fit; then val_loss."""
    lines: list[Text] = []
    ordered = [model.metrics[step] for step in sorted(model.metrics)]
    columns = max(1, width // _CELL)
    cells = []
    for name, value_of in _METRICS:
        values = [value for row in ordered if (value := value_of(row)) is not None]
        if values:
            cells.append(_metric(name, values, width // columns))
    if cells:
        lines.append(Text(fit(f"after step {max(model.metrics)}", width).rstrip(), style="dim"))
    for start in range(0, len(cells), columns):
        line = Text()
        for cell in cells[start : start + columns]:
            line.append_text(cell)
        lines.append(line)
    if model.base_val_loss is not None:
        lines.append(_val_loss(model, width))
    return lines


def _metric(name: str, values: list[float], width: int) -> Text:
    cell = Text()
    cell.append(f"{name:<9} ", style="dim")
    cell.append(f"{number(values[-1]):>7} ")
    cell.append(fit(sparkline(values, width - 20), width - 18), style="cyan")
    return cell


def _val_loss(model: RunModel, width: int) -> Text:
    losses = [model.base_val_loss or 0.0, *(model.validated[key] for key in sorted(model.validated))]
    line = Text()
    line.append(f"{'val_loss':<9} ", style="dim")
    line.append(f"{number(losses[-1]):>7} ")
    line.append(sparkline(losses, 10), style="cyan")
    text = f"  base {number(losses[0])}"
    if len(losses) > 1:
        text += f", {losses[-1] - losses[0]:+.4f}"
    if model.best is not None:
        text += f", best: {name_of(model.best)}"
    line.append(fit(text, width - cell_len(line.plain)).rstrip())
    return line


def _sample(model: RunModel, frame: Frame, width: int) -> list[Text]:
    """One of the newest generated answers with its prompt and the human answer; it changes every 6 s."""
    if not model.samples:
        return []
    index = 0 if frame.is_last else int(frame.now / _SAMPLE_S) % len(model.samples)
    sample = model.samples[index]
    iteration = model.samples_iteration or 0
    reference = model.references.get(iteration, iteration - 1)
    by = {BASE: "base", WARM_UP: "warm-up"}.get(reference, f"iteration {reference}")
    title = f"sample {index + 1} of {len(model.samples)}, generated in iteration {model.samples_iteration}"
    lines = [Text(title, style="dim")]
    columns = (("prompt", "prompt", "dim"), ("human", "actual", "green"), (by, "generated", "cyan"))
    for label, name, style in columns:
        for number_, part in enumerate(wrapped(clean(sample.get(name, "")), width - 14, 2) or [""]):
            line = Text(f"{label if number_ == 0 else '':<13} ", style=style)
            line.append(part, style="default")
            lines.append(line)
    return lines


def _warnings(model: RunModel, frame: Frame, width: int) -> list[Text]:
    lines = [Text(fit(clean(frame.notice), width).rstrip(), style="yellow")] if frame.notice else []
    if model.failure:
        text = f"{model.failure.get('error')}: {model.failure.get('message')}"
        lines += [Text(part, style="red") for part in wrapped(clean(text), width, 3)]
    for warning in list(model.warnings)[-3:]:
        times = f" ({warning.count} times)" if warning.count > 1 else ""
        text = clean(f"! {warning.where.label}: {warning.message}{times}")
        lines.append(Text(fit(text, width).rstrip(), style="yellow"))
    return lines


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
