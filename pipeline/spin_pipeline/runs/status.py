"""Status of a run, read from its storage: progress, results of each iteration, and how the last attempt ended."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from spin_components.errors import ConfigError, IntegrityError
from spin_components.record.attempts import last_failures, newest_attempt_of
from spin_components.record.decisions import goes_on
from spin_components.record.events import read_events
from spin_components.record.history import read_history
from spin_components.record.pointers import read_pointer
from spin_components.runtime.step import is_optional
from spin_components.settings.attempt import EvaluationSettings
from spin_components.settings.selection import SelectionSettings
from spin_components.settings.training import ControlSettings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.lease import read_lease
from spin_components.store.lock import is_locked
from spin_components.store.manifests import read_manifest
from spin_components.store.open import open_run
from spin_pipeline.runs.fine_tuning import (
    Answers,
    ControlStatus,
    Record,
    WarmUpStatus,
    control_status,
    evaluation_facts,
    is_control_missing,
    warm_up_status,
)
from spin_pipeline.runs.published import published_iterations

State = Literal["running", "done", "failed", "stopped", "interrupted"]


class IterationStatus(Answers):
    """A published iteration; `data.pair_counts` explains the counts of pairs.

    Attributes:
        val_loss: None if it is not finite.
        outcome: better, unclear, regressed or drifted, compared with the best model before it.
        reason: for the outcome, in words.
        next: iteration whose policy is the next reference; -1 for the base model, None if the run ends.
        from_base: paired change of val_loss from the base model: `mean`, `low`, `high`, …; None if it is unknown.
        from_reference: the same from the iteration's reference.
        from_best: the same from the best model before it.
        measure: what decided, `selection.measure`.
        answer_changes: paired changes of measures of answers, by their names, as `from_best` has them: `chrf` and
            `match` from the best model before it, `ended` and `repetition` from the iteration's reference; and of
            `measure` from the best model before it, where that is one of the evaluation. `is_paired` is false where
            its interval is from standard errors.
        evaluation: results of `spin_components.evaluate`: `tasks`, `judge`; None without an evaluation.
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
    num_triplets: int | None = None
    decision: str
    outcome: str = ""
    reason: str = ""
    next: int | None = None
    from_base: dict[str, Any] | None = None
    from_reference: dict[str, Any] | None = None
    from_best: dict[str, Any] | None = None
    spin_margin: float | None = None
    measure: str = "nll"
    answer_changes: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    work_s: float
    evaluation: dict[str, Any] | None = None


class BestStatus(Record):
    """The best model among those that neither regressed nor drifted; iteration -1 is the base model."""

    iteration: int
    uri: str
    val_loss: float


class BaseStatus(Answers):
    """The base model, which iteration 0 starts from; `evaluation` as in `IterationStatus`."""

    val_loss: float | None = None
    evaluation: dict[str, Any] | None = None


class RunStatus(Record):
    """Status of a run, as printed by `status --json`.

    Attributes:
        iteration: of the newest training step, as are epoch, step and consumed_samples; None before the first step.
        best: None before an iteration is published.
        warm_up: None without one.
        control: one an iteration whose control is trained.
        failure: the event that ended the last attempt; None unless it failed.
        warnings: those of `prepare` about the template and the data.
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
    warm_up: WarmUpStatus | None = None
    control: list[ControlStatus] = Field(default_factory=list)
    failure: dict[str, Any] | None = None
    warnings: list[str] = Field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Exit code: 0 if done, the failure's code if failed, 3 if the same command resumes the run."""
        if self.state == "done":
            return 0
        return int(self.failure["exit_code"]) if self.failure else 3


def read_status(run_uri: str) -> RunStatus:
    """Read the status of a run from its storage.

    Raises:
        ConfigError: there is no run at the address.
        StorageAccessError, StorageError: storage denies access, or does not answer.
    """
    run = open_run(run_uri)
    if not run.exists(layout.ATTEMPT):
        raise ConfigError(f"no run at {run.uri}: it has no {layout.ATTEMPT}; start one with `spin-pipeline run`")
    iterations = [
        _record(
            IterationStatus,
            {**read_manifest(run, layout.checkpoint(t)).facts, "evaluation": _evaluation(run, t)},
            run.uri_of(layout.checkpoint(t)),
        )
        for t in published_iterations(run)
    ]
    base_key = layout.validation(layout.BASE, 0)
    val_loss = read_manifest(run, base_key).facts["val_loss"] if run.exists(base_key) else None
    base = BaseStatus(val_loss=val_loss, evaluation=_evaluation(run, layout.BASE))
    has_more = run.sizes(layout.iteration(layout.WARM_UP)) or run.sizes(layout.CONTROLS)
    history = read_history(run) if has_more else None
    events = read_events(run)
    state, failure = _state(run, newest_attempt_of(run, events), iterations)
    trained: dict[str, Any] = next((event for event in reversed(events) if _is_training_step(event)), {})
    return RunStatus(
        run_uri=run.uri,
        state=state,
        iteration=trained.get("iteration"),
        epoch=trained.get("epoch"),
        step=trained.get("global_step", 0),
        consumed_samples=trained.get("consumed_samples", 0),
        best=_record(BestStatus, read_pointer(run, layout.BEST), run.uri_of(layout.BEST))
        if run.exists(layout.BEST)
        else None,
        iterations=iterations,
        base=_with_answers(run, base),
        warm_up=warm_up_status(history) if history else None,
        control=control_status(run, history) if history else [],
        failure=failure,
        warnings=read_manifest(run, layout.DATA_MANIFEST).facts.get("warnings", [])
        if run.exists(layout.DATA_MANIFEST)
        else [],
    )


_Read = TypeVar("_Read", bound=Record)


def _record(kind: type[_Read], values: dict[str, Any], address: str) -> _Read:
    """What a file of the run holds.

    Raises:
        IntegrityError: it holds something else.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}" for detail in error.errors()[:3]
        )
        raise IntegrityError(
            f"{address} is not what a run writes ({problems}); restore the original, or delete it to have its step run "
            "again"
        ) from error


def _is_training_step(event: dict[str, Any]) -> bool:
    """Whether an event is a training step's, with the numbers that a status shows."""
    numbers = (event.get(name, 0) for name in ("global_step", "consumed_samples"))
    if event.get("step", "train-epoch") != "train-epoch":  # the steps of a warm-up and of controls are counted apart
        return False
    return event["kind"] == "metrics" and all(type(number) is int for number in numbers)


def is_at_work(run: RunStore) -> bool:
    """Whether an attempt is running: a process on this machine holds the lock, or the lease has not expired."""
    lease = read_lease(run)
    return is_locked(run.scratch) or bool(lease and lease.remaining_s)


def _state(
    run: RunStore, events: list[dict[str, Any]], iterations: list[IterationStatus]
) -> tuple[State, dict[str, Any] | None]:
    if is_at_work(run):
        return "running", None
    failures = last_failures(events)
    rules = SelectionSettings.model_validate(run.read_json(layout.ATTEMPT).get("selection", {}))
    if fatal := [event for event in failures if not _is_optional(event, rules)]:
        return "failed", _failure(fatal[-1])
    if any(event["kind"] == "stop" for event in events):
        return "stopped", None
    if not iterations or goes_on(iterations[-1].decision):
        return "interrupted", None
    if failures:
        return "failed", _failure(failures[-1])
    is_missing = _is_evaluation_missing(run, iterations) or is_control_missing(
        run, [row.iteration for row in iterations]
    )
    return "interrupted" if is_missing else "done", None


def _is_optional(event: dict[str, Any], rules: SelectionSettings) -> bool:
    """Whether a `fail` event left the attempt running."""
    iteration = event.get("iteration")
    number = iteration if type(iteration) is int else None
    return is_optional(str(event.get("step")), number, decides=rules.waits_for_evaluation)


def _failure(event: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `fail` event that a status shows."""
    names = ("step", "iteration", "epoch", "shard", "error", "message", "exit_code")
    code = event.get("exit_code")
    fields = {name: event[name] for name in names if name in event}
    return {"message": "", **fields, "exit_code": code if type(code) is int and 0 < code < 256 else 1}


def _with_answers(run: RunStore, base: BaseStatus) -> BaseStatus:
    """The base model with the measures of its answers."""
    key = layout.validation(layout.BASE, 0)
    facts = read_manifest(run, key).facts if run.exists(key) else {}
    return BaseStatus.model_validate({**facts, **base.model_dump(include={"val_loss", "evaluation"})})


def _evaluation(run: RunStore, iteration: int) -> dict[str, Any] | None:
    key = layout.evaluation(iteration)
    return evaluation_facts(read_manifest(run, key)) if run.exists(key) else None


def _is_evaluation_missing(run: RunStore, iterations: list[IterationStatus]) -> bool:
    """Whether the attempt is configured to evaluate models and an evaluation, or a part of it, is missing."""
    attempt = run.read_json(layout.ATTEMPT)
    settings = EvaluationSettings.model_validate(attempt.get("evaluation", {}))
    if not settings.is_on:
        return False
    numbers = [layout.BASE, *(row.iteration for row in iterations)]
    rules = SelectionSettings.model_validate(attempt.get("selection", {}))
    if rules.waits_for_evaluation and ControlSettings.model_validate(attempt.get("control", {})).sft:
        numbers += [layout.control(row.iteration) for row in iterations]
    wanted = {name for name, is_on in (("tasks", settings.tasks), ("judge", settings.judge_url)) if is_on}
    return not all(wanted <= (_evaluation(run, number) or {}).keys() for number in numbers)
