"""Prints a run's events as lines, where the output is not a terminal that `watch.live` can draw on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from spin_components.record.evaluation import summary
from spin_components.store.layout import BASE, WARM_UP
from spin_components.store.layout import controlled as of_control
from spin_pipeline.watch.steps import summary_of_fine_tuning
from spin_pipeline.watch.text import duration, harmless

_PLAIN_INTERVAL_S = 10.0


def step_label(event: dict[str, Any]) -> str:
    """Label of an event's step, e.g. `iteration 0  train-epoch 1`."""
    name = str(event["step"])
    if name == "warm-up":
        return name if event.get("epoch") is None else f"{name} epoch {event['epoch']}"
    if (iteration := event.get("iteration", BASE)) < 0:
        controlled = of_control(iteration)
        model = {BASE: "base", WARM_UP: "warm-up"}.get(iteration, f"control {controlled}")
        return f"{name} {model}" if name in ("validate", "evaluate") else name
    number = event.get("epoch", event.get("shard"))
    return f"iteration {event['iteration']}  {name}" + ("" if number is None else f" {number}")


class LinePrinter:
    """A `Display` that prints finished steps as lines, and progress at most every 10 s."""

    wants_history = False

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_progress = float("-inf")
        self._training = ""
        self._handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            "start": self._on_start,
            "progress": self._on_progress,
            "transfer": self._on_progress,
            "metrics": self._on_metrics,
            "done": self._on_done,
            "reuse": lambda event: self._line(event, "done before", style="dim"),
            "resume": lambda event: self._line(event, f"resuming after step {event['done']}"),
            "validation": lambda event: self._line(
                event, f"val_loss {event['val_loss']:.4f} after step {event['global_step']}"
            ),
            "warning": lambda event: self._line(event, event["message"], style="yellow"),
            "stop": lambda event: self._line(event, f"stopped: {event['reason']}", style="yellow"),
            "fail": lambda event: self._line(event, f"failed: {event['error']}", style="red"),
        }

    def show(self, events: Sequence[dict[str, Any]]) -> None:
        """Print events; unknown or malformed ones are skipped."""
        for event in events:
            if handler := self._handlers.get(str(event.get("kind"))):
                try:
                    handler(event)
                except (KeyError, TypeError, ValueError):
                    continue  # written by another version

    def state(self, text: str) -> None:
        """Do nothing: the lines show events only."""

    def interrupted(self) -> None:
        """Print that the run was interrupted."""
        self._console.print("interrupted; the same command resumes from the last save", style="yellow")

    def close(self) -> None:
        """Do nothing."""

    def _line(self, event: dict[str, Any], text: str, style: str = "") -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(event["time"]))
        line = f"{clock}  {step_label(event):<28}{harmless(text)}"
        self._console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    def _on_start(self, event: dict[str, Any]) -> None:
        self._training = ""

    def _on_progress(self, event: dict[str, Any]) -> None:
        if not event["done"] or time.monotonic() - self._last_progress < _PLAIN_INTERVAL_S:
            return
        self._last_progress = time.monotonic()
        what = f"{event['what']}: " if "what" in event else ""
        left = f", {duration(event['eta_s'])} left" if event.get("eta_s") else ""
        self._line(event, f"{what}{event['done']}/{event['total']} {event['unit']}{left}{self._training}")

    def _on_metrics(self, event: dict[str, Any]) -> None:
        acc = f"  acc {event['acc']:.2f}" if "acc" in event else ""
        self._training = f"  loss {event['loss']:.4f}{acc}  {event['step_time']:.1f} s a step"

    def _on_done(self, event: dict[str, Any]) -> None:
        self._line(event, f"{event['duration_s']:6.1f} s  {_summary(str(event['step']), event['facts'])}")


def _history(facts: dict[str, Any]) -> str:
    return f", {facts['num_history']} of them from earlier iterations" if facts.get("num_history") else ""


def _summary(step: str, facts: dict[str, Any]) -> str:
    """Summary of a finished step's facts."""
    if step == "prepare":
        return f"{facts['num_train']} training prompts, {facts['num_validation']} for validation"
    if step == "generate":
        dropped = facts["num_empty"] + facts["num_identical"]
        return (
            f"{facts['num_pairs']} answers, {facts['mean_generated_tokens']:.0f} tokens each (human "
            f"{facts['mean_actual_tokens']:.0f}), {facts['tokens_per_s']:.0f} tokens/s, {facts['engine']}"
            + (f", {dropped} without signal" if dropped else "")
        )
    if step == "ref-logprob":
        return f"{facts['num_pairs']} pairs scored" + _history(facts)
    if step == "train-epoch":
        metrics = facts["metrics"]
        if not metrics:
            return "no step left to do"
        return f"{facts['num_steps']} steps, loss {metrics['loss']:.4f}, acc {metrics['acc']:.2f}"
    if step in ("warm-up", "control"):
        return summary_of_fine_tuning(facts)
    if step == "validate":
        margin = "" if facts.get("spin_margin") is None else f", margin {facts['spin_margin']:.3f} on held-out pairs"
        return f"val_loss {_loss(facts)}{margin}"
    if step == "evaluate":
        return summary(facts)
    return f"val_loss {_loss(facts)}: {facts['decision']}"


def _loss(facts: dict[str, Any]) -> str:
    return "not finite" if facts["val_loss"] is None else f"{facts['val_loss']:.4f}"
