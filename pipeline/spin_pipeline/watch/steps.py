"""The rows of the DAG in a view: their labels, states and notes, and which are shown when there is little space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from spin_components.record.evaluation import summary
from spin_components.store.layout import BASE, WARM_UP
from spin_components.store.layout import control as number_of_control
from spin_pipeline.watch.model import ProgressStatus, RunModel, StepKey, StepState, StepStatus
from spin_pipeline.watch.text import number

_WORDS = {
    "regressed": "worse",
    "drifted": "drifted",
    "saturated": "saturated",
    "done": "done",
    "roll_back": "rolled back",
}
_ENDED: tuple[StepState, ...] = ("done", "reused")


@dataclass(frozen=True, slots=True)
class DagRow:
    """One row of the DAG: a step, all shards of a step, or an iteration.

    Attributes:
        indent: 1 for a step within an iteration.
        state: of the step, or the combined state of its shards or of the iteration's steps.
        note: a short summary.
        work: progress; None while unknown.
        started, ended: seconds since 1970.
    """

    label: str
    state: StepState
    indent: Literal[0, 1] = 0
    note: str = ""
    work: ProgressStatus | None = None
    started: float | None = None
    ended: float | None = None


def rows(model: RunModel, limit: int) -> list[DagRow]:
    """The DAG in at most `limit` rows (2 or more); only running iterations and the newest show their steps."""
    iterations = _iterations(model)
    shown = [_row(model.step("prepare"), "prepare"), _row(model.step("validate", BASE, 0), "validate base")]
    if (model.plan and model.plan.warm_up) or StepKey("warm-up") in model.steps:
        shown.append(_row(model.step("warm-up"), "warm-up"))
        shown.append(_row(model.step("validate", WARM_UP, 0), "validate warm-up"))
    for start, name in ((BASE, "base"), (WARM_UP, "warm-up")):
        if (key := StepKey("evaluate", start)) in model.steps:
            shown.append(_row(model.steps[key], f"evaluate {name}"))
    started = [t for t in iterations if _iteration_state(model, t) != "waiting"]
    expanded = {t for t in started if t == started[-1] or _iteration_state(model, t) not in _ENDED}
    for name in ("evaluate", "control"):
        expanded |= {t for t in started if model.step(name, t).state in ("running", "failed")}
    for t in iterations:
        inner = _steps_of(model, t)
        shown.append(_iteration_row(model, t, inner))
        if t in expanded:
            shown += [replace(row, indent=1) for row in inner]
    if len(shown) > limit:
        shown = [row for row in shown if row.indent or row.state not in _ENDED or row is shown[-1]]
    if len(shown) > limit:
        active = [index for index, row in enumerate(shown) if row.state in ("running", "failed", "stopped")]
        last = min(max([*active, limit - 1]), len(shown) - 1)
        shown = shown[max(0, last - limit + 1) : last + 1]
    return shown


def _iterations(model: RunModel) -> range:
    seen = max((key.iteration for key in model.steps if key.iteration is not None), default=-1)
    return range(max(model.plan.max_iterations if model.plan else 0, seen + 1))


def _steps_of(model: RunModel, t: int) -> list[DagRow]:
    started = [(key.part or 0) + 1 for key in model.steps if key.iteration == t and key.name == "train-epoch"]
    num_epochs = max([model.plan.epochs(t) if model.plan else 1, *started])
    steps = [_sharded_row(model, "generate", t), _sharded_row(model, "ref-logprob", t)]
    for epoch in range(num_epochs):
        suffix = f" {epoch}" if num_epochs > 1 else ""
        steps.append(_row(model.step("train-epoch", t, epoch), f"train-epoch{suffix}"))
        steps.append(_row(model.step("validate", t, epoch), f"validate{suffix}"))
    evaluated = [_row(model.step("evaluate", t), "evaluate")]
    published = [_row(model.step("checkpoint", t), "checkpoint")]
    decides = model.plan is not None and model.plan.decides  # the verdict waits for the evaluation
    if not decides and StepKey("evaluate", t) not in model.steps:
        evaluated = []
    steps += evaluated + published if decides else published + evaluated
    if (model.plan and model.plan.control) or StepKey("control", t) in model.steps:
        steps.append(_row(model.step("control", t), "control"))
        steps.append(_row(model.step("validate", number_of_control(t), 0), "validate control"))
        if (key := StepKey("evaluate", number_of_control(t))) in model.steps:
            steps.append(_row(model.steps[key], "evaluate control"))
    return steps


def _row(step: StepStatus, label: str) -> DagRow:
    return DagRow(label, step.state, note=note(step), work=step.work, started=step.started, ended=step.ended)


def _sharded_row(model: RunModel, name: str, t: int) -> DagRow:
    """One row for all shards of a step."""
    steps = [step for key, step in model.steps.items() if (key.name, key.iteration) == (name, t)]
    chosen = int(model.step("prepare").facts.get("num_shards", 1))
    planned = max((model.plan.shards if model.plan else 1) or chosen, len(steps), 1)
    if planned == 1:
        return _row(steps[0] if steps else StepStatus(StepKey(name, t, 0)), name)
    num_ended = sum(step.state in _ENDED for step in steps)
    starts = [step.started for step in steps if step.started is not None]
    state = _combined([step.state for step in steps], is_complete=len(steps) == planned)
    ends = [step.ended for step in steps if step.ended is not None]
    return DagRow(
        name,
        state,
        note=f"{num_ended} of {planned} shards",
        work=_summed([step.work for step in steps if step.work and not step.work.what]),
        started=min(starts, default=None),
        ended=None if state == "running" else max(ends, default=None),
    )


def _summed(works: Sequence[ProgressStatus]) -> ProgressStatus | None:
    """Sum of the progress of several shards; the time left is that of the slowest."""
    if not works:
        return None
    etas = [work.eta_s for work in works if work.done < work.total]
    return ProgressStatus(
        sum(work.done for work in works),
        sum(work.total for work in works),
        works[0].unit,
        rate=sum(work.rate or 0.0 for work in works if work.done < work.total) or None,
        eta_s=max((eta for eta in etas if eta is not None), default=None),
    )


def _combined(states: Sequence[StepState], *, is_complete: bool) -> StepState:
    """State of several steps; `is_complete` if no further step is to come."""
    for state in ("failed", "stopped", "running", "interrupted"):
        if state in states:
            return state
    if not states or all(state == "waiting" for state in states):
        return "waiting"
    if is_complete and all(state in _ENDED for state in states):
        return "reused" if all(state == "reused" for state in states) else "done"
    return "running"


def _iteration_state(model: RunModel, t: int) -> StepState:
    published = model.step("checkpoint", t)
    if published.state in _ENDED:
        return published.state
    states = [step.state for key, step in model.steps.items() if key.iteration == t and key.name != "control"]
    return _combined(states, is_complete=False)


def _iteration_row(model: RunModel, t: int, inner: Sequence[DagRow]) -> DagRow:
    state = _iteration_state(model, t)
    starts = [row.started for row in inner if row.started is not None]
    facts = model.step("checkpoint", t).facts
    notes = [f"val_loss {loss(facts)}"] if "val_loss" in facts else []
    if facts.get("acc") is not None:
        notes.append(f"acc {float(facts['acc']):.2f}")
    if model.best == t and len(model.decisions) > 1:
        notes.append("best")
    verdicts = dict.fromkeys((model.outcomes.get(t, ""), model.decisions.get(t, "")))
    notes += [_WORDS[verdict] for verdict in verdicts if verdict in _WORDS]
    ended = model.step("checkpoint", t).ended if state in _ENDED else None
    started = min(starts, default=None)
    return DagRow(f"iteration {t}", state, note=", ".join(notes), started=started, ended=ended)


def loss(facts: dict[str, Any]) -> str:
    """val_loss of a validation or an iteration, as text."""
    return "not finite" if facts["val_loss"] is None else number(float(facts["val_loss"]))


def summary_of_fine_tuning(facts: dict[str, Any]) -> str:
    """Summary of a finished warm-up or control, or of an epoch of it."""
    loss_now = f"val_loss {number(float(facts['val_loss']))}"
    if "epochs" not in facts:
        return f"{facts['num_steps']} steps, {loss_now}"
    kept = "base model kept" if facts["epoch"] is None else f"epoch {facts['epoch']} kept"
    return f"{facts['num_steps']} steps in {len(facts['epochs'])} epochs, {loss_now}, {kept}"


def note(step: StepStatus) -> str:
    """Summary of a finished step in a few words; the state of one that did not finish."""
    facts, name = step.facts, step.key.name
    if step.state == "reused":
        return "done before"
    if step.state != "done":
        return step.state if step.state in ("failed", "stopped", "interrupted") else ""
    try:
        if name == "prepare":
            return f"{facts['num_train']} prompts, {facts['num_validation']} held out"
        if name == "generate":
            return f"{facts['num_pairs']} answers, {facts['tokens_per_s']:.0f} tokens/s, {facts['engine']}"
        if name == "ref-logprob":
            return f"{facts['num_pairs']} pairs" + (f", {old} older" if (old := facts.get("num_history")) else "")
        if name == "train-epoch":
            metrics = facts["metrics"]
            return f"{facts['num_steps']} steps, loss {number(metrics['loss'])}" if metrics else "no step left to do"
        if name == "evaluate":
            return summary(facts)
        if name in ("warm-up", "control"):
            return summary_of_fine_tuning(facts)
        return f"val_loss {loss(facts)}"
    except (KeyError, TypeError, ValueError):
        return ""
