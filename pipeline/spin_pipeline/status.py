"""What a run's storage says of it: how far it is, what each iteration gave, how the last attempt ended."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from spin_components.checkpoint.decisions import goes_on
from spin_components.errors import ConfigError
from spin_components.evaluation_settings import EvaluationSettings
from spin_components.events import read_events
from spin_components.execution import OPTIONAL
from spin_components.store import layout
from spin_components.store.lease import read_lease
from spin_components.store.manifests import read_manifest
from spin_components.store.run import RunStore, open_run
from spin_pipeline.lock import is_locked
from spin_pipeline.published import iterations as iterations_of

State = Literal["running", "done", "failed", "stopped", "interrupted"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class IterationStatus(_Record):
    """A published iteration; `data.pair_counts` explains the counts of pairs.

    Attributes:
        val_loss: None where it is not finite.
        outcome: better, unclear or regressed, against the best model before it.
        reason: for that, in words.
        next: iteration whose policy is the next reference; -1 for the base model, None where the run ends.
        from_base: paired change of val_loss from the base model: `mean`, `low`, `high`, …; None where it is unknown.
        from_reference: likewise, from what the iteration began from.
        from_best: likewise, from the best model before it.
        evaluation: what `spin_components.evaluate` found: `tasks`, `judge`; None where nothing was asked.
    """

    iteration: int
    checkpoint_uri: str
    val_loss: float | None
    acc: float | None
    rewards_actual_mean: float | None
    rewards_generated_mean: float | None
    num_pairs: int
    num_history: int = 0
    num_by_origin: dict[int, int] = Field(default_factory=dict)
    num_dropped: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    history_dropped: dict[str, int] = Field(default_factory=dict)
    decision: str
    outcome: str = ""
    reason: str = ""
    next: int | None = None
    from_base: dict[str, Any] | None = None
    from_reference: dict[str, Any] | None = None
    from_best: dict[str, Any] | None = None
    spin_margin: float | None = None
    length_ratio: float | None = None
    repetition_rate: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    work_s: float
    evaluation: dict[str, Any] | None = None


class BestStatus(_Record):
    """The model with the lowest val_loss of those that did not regress; iteration -1 is the base model."""

    iteration: int
    uri: str
    val_loss: float


class BaseStatus(_Record):
    """The model that iteration 0 started from; `evaluation` as of an iteration."""

    val_loss: float | None = None
    evaluation: dict[str, Any] | None = None


class RunStatus(_Record):
    """What `status --json` prints.

    Attributes:
        iteration: of the newest training step, as are epoch, step and consumed_samples; None before the first.
        best: None before an iteration is published.
        failure: what ended the last attempt, where it failed.
    """

    run_uri: str
    state: State
    iteration: int | None
    epoch: int | None
    step: int
    consumed_samples: int
    best: BestStatus | None
    iterations: list[IterationStatus]
    base: BaseStatus
    failure: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """0 done, the failure's own code, 3 where the same command goes on."""
        if self.state == "done":
            return 0
        return int(self.failure["exit_code"]) if self.failure else 3


def read_status(run_uri: str) -> RunStatus:
    """Read a run's state from its storage alone.

    Raises:
        ConfigError: no run is there.
        StorageAccessError, StorageError: storage refuses, or does not answer.
    """
    run = open_run(run_uri)
    if not run.exists(layout.ATTEMPT):
        raise ConfigError(f"no run at {run.uri}: it has no {layout.ATTEMPT}; start one with `spin-pipeline run`")
    iterations = [
        IterationStatus.model_validate(
            {**read_manifest(run, layout.checkpoint(t)).facts, "evaluation": _evaluation(run, t)}
        )
        for t in iterations_of(run)
    ]
    base_key = layout.validation(layout.BASE, 0)
    val_loss = read_manifest(run, base_key).facts["val_loss"] if run.exists(base_key) else None
    base = BaseStatus(val_loss=val_loss, evaluation=_evaluation(run, layout.BASE))
    started = run.read_json(layout.ATTEMPT)["started"]
    events = read_events(run)
    latest = [event for event in events if event["time"] >= started]
    state, failure = _state(run, latest, iterations)
    trained: dict[str, Any] = next((event for event in reversed(events) if event["kind"] == "metrics"), {})
    return RunStatus(
        run_uri=run.uri,
        state=state,
        iteration=trained.get("iteration"),
        epoch=trained.get("epoch"),
        step=trained.get("global_step", 0),
        consumed_samples=trained.get("consumed_samples", 0),
        best=BestStatus.model_validate(run.read_json(layout.BEST)) if run.exists(layout.BEST) else None,
        iterations=iterations,
        base=base,
        failure=failure,
    )


def is_at_work(run: RunStore) -> bool:
    """Whether an attempt holds the run: a process of this machine, or a lease that is not over."""
    lease = read_lease(run)
    return is_locked(run.scratch) or bool(lease and lease.remaining_s)


def _state(
    run: RunStore, events: list[dict[str, Any]], iterations: list[IterationStatus]
) -> tuple[State, dict[str, Any] | None]:
    if is_at_work(run):
        return "running", None
    failures = [event for event in events if event["kind"] == "fail"]
    if fatal := [event for event in failures if event["step"] not in OPTIONAL]:
        return "failed", _told(fatal[-1])
    if any(event["kind"] == "stop" for event in events):
        return "stopped", None
    if not iterations or goes_on(iterations[-1].decision):
        return "interrupted", None
    if failures:
        return "failed", _told(failures[-1])
    return "interrupted" if _is_evaluation_lacking(run, iterations) else "done", None


def _told(event: dict[str, Any]) -> dict[str, Any]:
    """What a status says of a failure."""
    names = ("step", "iteration", "epoch", "shard", "error", "message", "exit_code")
    return {name: event[name] for name in names if name in event}


def _evaluation(run: RunStore, iteration: int) -> dict[str, Any] | None:
    key = layout.evaluation(iteration)
    if not run.exists(key):
        return None
    return {name: value for name, value in read_manifest(run, key).facts.items() if name != "policy_uri"}


def _is_evaluation_lacking(run: RunStore, iterations: list[IterationStatus]) -> bool:
    """Whether the attempt was to evaluate a model and has not come to it."""
    wanted = EvaluationSettings.model_validate(run.read_json(layout.ATTEMPT).get("evaluation", {}))
    places = (layout.BASE, *(row.iteration for row in iterations))
    return wanted.is_on and not all(run.exists(layout.evaluation(place)) for place in places)
