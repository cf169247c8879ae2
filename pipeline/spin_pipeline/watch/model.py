"""State of a run, computed from its events alone; nothing here reads storage, a clock or a terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from spin_components.record.decisions import goes_on
from spin_components.runtime.publication import TRAINING_STEPS
from spin_components.runtime.step import is_optional
from spin_components.store.layout import BASE, WARM_UP, controlled

StepState = Literal["waiting", "running", "done", "reused", "failed", "stopped", "interrupted"]
Event = dict[str, Any]

SHARDED = ("generate", "ref-logprob")
_APART = tuple(name for name in TRAINING_STEPS if name != "train-epoch")
"""Steps that train all their epochs, which are no iteration's."""
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
"""The metrics of a training step that the view shows."""


@dataclass(frozen=True, slots=True)
class StepKey:
    """Identifies a step of the DAG; `part` is its epoch or shard."""

    name: str
    iteration: int | None = None
    part: int | None = None

    @property
    def label(self) -> str:
        """Label, e.g. `iteration 0 train-epoch 1`."""
        if self.iteration is not None and self.iteration < 0:
            of = controlled(self.iteration)
            return f"{self.name} {({BASE: 'base', WARM_UP: 'warm-up'}).get(self.iteration, f'control {of}')}"
        prefix = "" if self.iteration is None else f"iteration {self.iteration} "
        return f"{prefix}{self.name}" + ("" if self.part is None else f" {self.part}")


@dataclass(frozen=True, slots=True)
class ProgressStatus:
    """Progress of a step or of a transfer.

    Attributes:
        done, total: in `unit`.
        what: description of a transfer; empty for the step itself.
        rate: units a second; None while unknown, as are `eta_s` (seconds left) and `tokens_per_s`.
    """

    done: float
    total: float
    unit: str
    what: str = ""
    rate: float | None = None
    eta_s: float | None = None
    tokens_per_s: float | None = None


@dataclass(slots=True)
class StepStatus:
    """State of one step, computed from its events.

    Attributes:
        started: time of its newest start, in seconds since 1970.
        ended: time of its end, in seconds since 1970; None while it runs.
        work: the newest progress.
        facts: the facts of its manifest; empty until it is done.
    """

    key: StepKey
    state: StepState = "waiting"
    started: float | None = None
    ended: float | None = None
    work: ProgressStatus | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Planned iterations, epochs and shards of an attempt; `deadline` in seconds since 1970; `warm_up` is its largest
    number of epochs, `control` whether there are controls, `decides` whether verdicts wait for the evaluation."""

    name: str
    max_iterations: int
    max_epochs: int | tuple[int, ...]
    shards: int
    deadline: float | None = None
    warm_up: int = 0
    control: bool = False
    decides: bool = False

    def epochs(self, iteration: int) -> int:
        """Number of epochs of an iteration; 1 for an iteration beyond the plan."""
        if isinstance(self.max_epochs, int):
            return self.max_epochs
        return self.max_epochs[iteration] if iteration < len(self.max_epochs) else 1


@dataclass(frozen=True, slots=True)
class RunWarning:
    """A warning, and how often it occurred."""

    time: float
    where: StepKey
    message: str
    count: int = 1


class RunModel:
    """State of a run, updated by its events.

    Attributes:
        plan: None before the first `plan` event.
        attempts: number of attempts so far.
        started: start of the newest attempt, in seconds since 1970; `latest` is the time of the newest event.
        metrics: the values of `SERIES` by global step; a step that is trained again replaces its older values.
        val_losses: validation losses measured inside an epoch, by global step.
        base_val_loss: val_loss of the base model.
        validated: val_loss by iteration and epoch.
        decisions: decisions of the published iterations.
        outcomes: better, unclear, regressed or drifted, of the published iterations.
        references: the iteration that each iteration's reference comes from; -1 for the base model, -2 for the warm-up.
        best: iteration of the best model; -1 for the base model.
        samples: the newest sampled answers; their iteration is `samples_iteration`.
        failure: the event that failed the attempt; None after its step was started again. `stop_reason` likewise.
    """

    def __init__(self) -> None:
        self.plan: RunPlan | None = None
        self.attempts = 0
        self.started: float | None = None
        self.latest: float | None = None
        self.steps: dict[StepKey, StepStatus] = {}
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
        self.warnings: deque[RunWarning] = deque(maxlen=50)
        self.failure: Event | None = None
        self.stop_reason: str | None = None

    def apply(self, events: Iterable[Event]) -> None:
        """Update the state by events, ordered by time; unknown or malformed ones are skipped."""
        for event in events:
            try:
                self._apply(event)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                continue  # written by another version, or damaged

    @property
    def is_over(self) -> bool:
        """Whether the last iteration was published."""
        return bool(self.decisions) and not goes_on(self.decisions[max(self.decisions)])

    @property
    def outcome(self) -> str:
        """How the newest attempt ended: done, failed or stopped; empty while it is not known."""
        if self.failure and (self.is_over or not self._is_optional(_key(self.failure))):
            return "failed"
        return "stopped" if self.stop_reason else "done" if self.is_over else ""

    @property
    def running(self) -> list[StepStatus]:
        """Running steps, ordered by their start."""
        running = [step for step in self.steps.values() if step.state == "running"]
        return sorted(running, key=lambda step: step.started or 0.0)

    def step(self, name: str, iteration: int | None = None, part: int | None = None) -> StepStatus:
        """Look up a step; one without events is waiting."""
        key = StepKey(name, iteration, part)
        return self.steps.get(key) or StepStatus(key)

    def _apply(self, event: Event) -> None:
        kind, time = str(event["kind"]), float(event["time"])
        self.latest = max(time, self.latest or time)
        key = _key(event)
        if kind == "start" and key.name == "prepare":
            self._begin_attempt(time)
        step = self.steps.setdefault(key, StepStatus(key))
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

    def _on_start(self, event: Event, step: StepStatus, time: float) -> None:
        step.state, step.started, step.ended, step.work = "running", time, None, None
        if self.failure and _key(self.failure) == step.key:
            self.failure = None

    def _on_plan(self, event: Event, step: StepStatus, time: float) -> None:
        epochs = event["max_epochs"]
        self.plan = RunPlan(
            str(event["name"]),
            int(event["max_iterations"]),
            tuple(int(number) for number in epochs) if isinstance(epochs, list) else int(epochs),
            int(event["shards"]),
            event.get("deadline"),
            int(event.get("warm_up", 0)),
            bool(event.get("control", False)),
            bool(event.get("decides", False)),
        )

    def _on_progress(self, event: Event, step: StepStatus, time: float) -> None:
        numbers = {name: event.get(name) for name in ("rate", "eta_s", "tokens_per_s")}
        known = {name: float(value) for name, value in numbers.items() if value is not None}
        step.work = ProgressStatus(
            float(event["done"]), float(event["total"]), str(event["unit"]), str(event.get("what", "")), **known
        )

    _on_transfer = _on_progress

    def _on_metrics(self, event: Event, step: StepStatus, time: float) -> None:
        if step.key.name in _APART:  # its steps are counted apart
            return
        values = {name: float(event[name]) for name in SERIES if event.get(name) is not None}
        self.metrics[int(event["global_step"])] = values

    def _on_validation(self, event: Event, step: StepStatus, time: float) -> None:
        if step.key.name in _APART:
            return
        self.val_losses[int(event["global_step"])] = float(event["val_loss"])

    def _on_samples(self, event: Event, step: StepStatus, time: float) -> None:
        self.samples = [dict(sample) for sample in event["samples"]]
        self.samples_iteration = step.key.iteration

    def _on_warning(self, event: Event, step: StepStatus, time: float) -> None:
        message = str(event["message"])
        known = next((w for w in self.warnings if w.message == message and w.where == step.key), None)
        if known:
            self.warnings.remove(known)
        self.warnings.append(RunWarning(time, step.key, message, known.count + 1 if known else 1))

    def _on_reuse(self, event: Event, step: StepStatus, time: float) -> None:
        if _is_part(event):
            return
        step.state, step.ended = "reused", time

    def _on_done(self, event: Event, step: StepStatus, time: float) -> None:
        if _is_part(event):
            return
        step.state, step.ended, step.facts = "done", time, dict(event["facts"])
        if step.work:
            step.work = replace(step.work, done=step.work.total)
        if step.key.name == "warm-up" and step.facts["epoch"] is not None:
            self.references[0] = WARM_UP
        if step.key.name == "validate" and step.key.iteration == BASE:
            self.base_val_loss = float(step.facts["val_loss"])
        elif step.key.name == "validate" and step.key.iteration is not None and step.key.iteration >= 0:
            if step.facts["val_loss"] is not None:
                self.validated[step.key.iteration, step.key.part or 0] = float(step.facts["val_loss"])
        elif step.key.name == "checkpoint" and step.key.iteration is not None:
            self.decisions[step.key.iteration] = str(step.facts["decision"])

    def _on_published(self, event: Event, step: StepStatus, time: float) -> None:
        self.best = int(event["iteration_best"])
        if step.key.iteration is not None:
            self.decisions[step.key.iteration] = str(event["decision"])
            self.outcomes[step.key.iteration] = str(event.get("outcome", ""))
            if event.get("next") is not None:
                self.references[step.key.iteration + 1] = int(event["next"])

    def _on_stop(self, event: Event, step: StepStatus, time: float) -> None:
        step.state, step.ended, self.stop_reason = "stopped", time, str(event["reason"])

    def _on_fail(self, event: Event, step: StepStatus, time: float) -> None:
        step.state, step.ended = "failed", time
        if self.failure is None or not self._is_optional(step.key):  # an optional step's failure ends no attempt
            self.failure = event

    def _is_optional(self, key: StepKey) -> bool:
        """Whether a step's failure leaves the attempt running; see `runtime.step.is_optional`."""
        return is_optional(key.name, key.iteration, decides=self.plan is not None and self.plan.decides)


def _is_part(event: Event) -> bool:
    """Whether an event is of one epoch of a step that trains several."""
    return event["step"] in _APART and "epoch" in event


def _key(event: Event) -> StepKey:
    name, iteration = str(event["step"]), event.get("iteration")
    part = None if name in _APART else event.get("shard" if name in SHARDED else "epoch")
    return StepKey(name, None if iteration is None else int(iteration), None if part is None else int(part))
