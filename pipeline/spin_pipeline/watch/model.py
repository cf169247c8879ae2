"""Where a run stands, from its events alone: nothing here reads storage, a clock or a terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from spin_components.checkpoint.decisions import goes_on
from spin_components.execution import OPTIONAL

StepState = Literal["waiting", "running", "done", "reused", "failed", "stopped", "interrupted"]
Event = dict[str, Any]

BASE = -1
SHARDED = ("generate", "ref-logprob")
SERIES = (
    "loss",
    "acc",
    "rewards_actual_mean",
    "rewards_generated_mean",
    "grad_norm",
    "lr",
    "step_time",
    "avg_generated_lengths",
)
"""Metrics of a training step that are kept."""


@dataclass(frozen=True, slots=True)
class Key:
    """Which step of the DAG; `part` is its epoch or shard."""

    name: str
    iteration: int | None = None
    part: int | None = None

    @property
    def words(self) -> str:
        """For a person, e.g. `iteration 0 train-epoch 1`."""
        if self.iteration == BASE:
            return f"{self.name} base"
        place = "" if self.iteration is None else f"iteration {self.iteration} "
        return f"{place}{self.name}" + ("" if self.part is None else f" {self.part}")


@dataclass(frozen=True, slots=True)
class Work:
    """How far a piece of work is.

    Attributes:
        what: a transfer in words; empty for the step's own work.
        rate: units a second; None where nothing is known yet, as for eta_s (seconds left) and tokens_per_s.
    """

    done: float
    total: float
    unit: str
    what: str = ""
    rate: float | None = None
    eta_s: float | None = None
    tokens_per_s: float | None = None


@dataclass(slots=True)
class Step:
    """One step as far as its events tell.

    Attributes:
        started: seconds since 1970, of its newest start.
        ended: likewise; None while it runs.
        work: the newest progress.
        facts: of its manifest, once it is done.
    """

    key: Key
    state: StepState = "waiting"
    started: float | None = None
    ended: float | None = None
    work: Work | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """The attempt's shape."""

    name: str
    max_iterations: int
    max_epochs: int | tuple[int, ...]
    shards: int
    deadline: float | None = None

    def epochs(self, iteration: int) -> int:
        """Of an iteration, as far as it is planned."""
        if isinstance(self.max_epochs, int):
            return self.max_epochs
        return self.max_epochs[iteration] if iteration < len(self.max_epochs) else 1


@dataclass(frozen=True, slots=True)
class Warned:
    """Something a person should know, and how often it was said."""

    time: float
    where: Key
    message: str
    count: int = 1


class RunModel:
    """Takes events and knows the run they tell of.

    Attributes:
        plan: None until the first attempt has said it.
        attempts: begun so far.
        started: of the newest attempt; `latest` is the time of the newest event.
        metrics: by global step, each of `SERIES` that it has; a step that is trained again replaces what it was.
        val_losses: by global step, where it was measured inside an epoch.
        base_val_loss: of the base model.
        validated: val_loss by iteration and epoch.
        decisions: by iteration, of those that are published.
        outcomes: likewise: better, unclear or regressed.
        references: iteration that each one's reference comes from; -1 for the base model.
        best: iteration of the best model; -1 for the base model.
        samples: the newest answers, with their iteration in `samples_iteration`.
        failure: the event that failed the attempt, unless its step was begun again; likewise `stop_reason`.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.attempts = 0
        self.started: float | None = None
        self.latest: float | None = None
        self.steps: dict[Key, Step] = {}
        self.metrics: dict[int, dict[str, float]] = {}
        self.val_losses: dict[int, float] = {}
        self.base_val_loss: float | None = None
        self.validated: dict[tuple[int, int], float] = {}
        self.decisions: dict[int, str] = {}
        self.outcomes: dict[int, str] = {}
        self.references: dict[int, int] = {0: BASE}
        self.best: int | None = None
        self.samples: list[dict[str, Any]] = []
        self.samples_iteration: int | None = None
        self.warnings: deque[Warned] = deque(maxlen=50)
        self.failure: Event | None = None
        self.stop_reason: str | None = None

    def take(self, events: Iterable[Event]) -> None:
        """Take events in the order of their time; what is not understood is passed over."""
        for event in events:
            try:
                self._take(event)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                continue  # written by another version, or damaged: a view shows what it can

    @property
    def is_over(self) -> bool:
        """Whether the last iteration was published."""
        return bool(self.decisions) and not goes_on(self.decisions[max(self.decisions)])

    @property
    def outcome(self) -> str:
        """How the newest attempt has ended: done, failed or stopped; empty where its events do not tell."""
        if self.failure and (self.is_over or self.failure["step"] not in OPTIONAL):
            return "failed"
        return "stopped" if self.stop_reason else "done" if self.is_over else ""

    @property
    def running(self) -> list[Step]:
        """Steps at work, in the order they began."""
        found = [step for step in self.steps.values() if step.state == "running"]
        return sorted(found, key=lambda step: step.started or 0.0)

    def step(self, name: str, iteration: int | None = None, part: int | None = None) -> Step:
        """A step by its place; one that has not been heard of waits."""
        key = Key(name, iteration, part)
        return self.steps.get(key) or Step(key)

    def _take(self, event: Event) -> None:
        kind, time = str(event["kind"]), float(event["time"])
        self.latest = max(time, self.latest or time)
        key = _key(event)
        if kind == "start" and key.name == "prepare":
            self._begin_attempt(time)
        step = self.steps.setdefault(key, Step(key))
        if handler := getattr(self, f"_on_{kind}", None):
            handler(event, step, time)

    def _begin_attempt(self, time: float) -> None:
        self.attempts += 1
        self.started = time
        self.failure = self.stop_reason = None
        for step in self.steps.values():
            if step.state == "running":
                step.state = "interrupted"
                step.ended = step.ended or self.latest
            elif step.state in ("failed", "stopped"):
                step.state = "waiting"

    def _on_start(self, event: Event, step: Step, time: float) -> None:
        step.state, step.started, step.ended, step.work = "running", time, None, None
        if self.failure and _key(self.failure) == step.key:
            self.failure = None

    def _on_plan(self, event: Event, step: Step, time: float) -> None:
        epochs = event["max_epochs"]
        self.plan = Plan(
            str(event["name"]),
            int(event["max_iterations"]),
            tuple(int(number) for number in epochs) if isinstance(epochs, list) else int(epochs),
            int(event["shards"]),
            event.get("deadline"),
        )

    def _on_progress(self, event: Event, step: Step, time: float) -> None:
        numbers = {name: event.get(name) for name in ("rate", "eta_s", "tokens_per_s")}
        known = {name: float(value) for name, value in numbers.items() if value is not None}
        step.work = Work(
            float(event["done"]), float(event["total"]), str(event["unit"]), str(event.get("what", "")), **known
        )

    _on_transfer = _on_progress

    def _on_metrics(self, event: Event, step: Step, time: float) -> None:
        values = {name: float(event[name]) for name in SERIES if event.get(name) is not None}
        self.metrics[int(event["global_step"])] = values

    def _on_validation(self, event: Event, step: Step, time: float) -> None:
        self.val_losses[int(event["global_step"])] = float(event["val_loss"])

    def _on_samples(self, event: Event, step: Step, time: float) -> None:
        self.samples = [dict(sample) for sample in event["samples"]]
        self.samples_iteration = step.key.iteration

    def _on_warning(self, event: Event, step: Step, time: float) -> None:
        message = str(event["message"])
        known = next((w for w in self.warnings if w.message == message and w.where == step.key), None)
        if known:
            self.warnings.remove(known)
        self.warnings.append(Warned(time, step.key, message, known.count + 1 if known else 1))

    def _on_reuse(self, event: Event, step: Step, time: float) -> None:
        step.state, step.ended = "reused", time

    def _on_done(self, event: Event, step: Step, time: float) -> None:
        step.state, step.ended, step.facts = "done", time, dict(event["facts"])
        if step.work:
            step.work = replace(step.work, done=step.work.total)
        if step.key.name == "validate" and step.key.iteration == BASE:
            self.base_val_loss = float(step.facts["val_loss"])
        elif step.key.name == "validate" and step.key.iteration is not None:
            if step.facts["val_loss"] is not None:
                self.validated[step.key.iteration, step.key.part or 0] = float(step.facts["val_loss"])
        elif step.key.name == "checkpoint" and step.key.iteration is not None:
            self.decisions[step.key.iteration] = str(step.facts["decision"])

    def _on_published(self, event: Event, step: Step, time: float) -> None:
        self.best = int(event["iteration_best"])
        if step.key.iteration is not None:
            self.decisions[step.key.iteration] = str(event["decision"])
            self.outcomes[step.key.iteration] = str(event.get("outcome", ""))
            if event.get("next") is not None:
                self.references[step.key.iteration + 1] = int(event["next"])

    def _on_stop(self, event: Event, step: Step, time: float) -> None:
        step.state, step.ended, self.stop_reason = "stopped", time, str(event["reason"])

    def _on_fail(self, event: Event, step: Step, time: float) -> None:
        step.state, step.ended = "failed", time
        if self.failure is None or step.key.name not in OPTIONAL:  # which ends nothing
            self.failure = event


def _key(event: Event) -> Key:
    name, iteration = str(event["step"]), event.get("iteration")
    part = event.get("shard" if name in SHARDED else "epoch")
    return Key(name, None if iteration is None else int(iteration), None if part is None else int(part))
