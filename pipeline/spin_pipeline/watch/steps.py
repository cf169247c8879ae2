"""The rows of the DAG in a view: which steps there are, what stands beside each, and which to leave out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from spin_components.evaluate.figures import summary
from spin_pipeline.watch.model import BASE, Key, RunModel, Step, StepState, Work
from spin_pipeline.watch.text import number

_TOLD = {"regressed": "regressed", "saturated": "saturated", "done": "done", "roll_back": "rolled back"}
_ENDED: tuple[StepState, ...] = ("done", "reused")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the DAG.

    Attributes:
        indent: 1 for a step within an iteration.
        state: of the step, or of all it stands for.
        note: what is worth telling of it.
        work: where its progress is known.
        started, ended: seconds since 1970.
    """

    label: str
    state: StepState
    indent: Literal[0, 1] = 0
    note: str = ""
    work: Work | None = None
    started: float | None = None
    ended: float | None = None


def rows(model: RunModel, limit: int) -> list[Row]:
    """The DAG in at most `limit` rows (2 at least); of iterations, only those at work and the newest are unfolded."""
    iterations = _iterations(model)
    head = [_row(model.step("prepare"), "prepare"), _row(model.step("validate", BASE, 0), "validate base")]
    if (judged := Key("evaluate", BASE)) in model.steps:
        head.append(_row(model.steps[judged], "evaluate base"))
    begun = [t for t in iterations if _iteration_state(model, t) != "waiting"]
    open_ones = {t for t in begun if t == begun[-1] or _iteration_state(model, t) not in _ENDED}
    open_ones |= {t for t in begun if model.step("evaluate", t).state in ("running", "failed")}
    found = list(head)
    for t in iterations:
        inner = _steps_of(model, t)
        found.append(_iteration_row(model, t, inner))
        if t in open_ones:
            found += [replace(row, indent=1) for row in inner]
    if len(found) > limit:
        found = [row for row in found if row.indent or row.state not in _ENDED or row is found[-1]]
    if len(found) > limit:
        active = [place for place, row in enumerate(found) if row.state in ("running", "failed", "stopped")]
        last = min(max([*active, limit - 1]), len(found) - 1)
        found = found[max(0, last - limit + 1) : last + 1]
    return found


def _iterations(model: RunModel) -> range:
    seen = max((key.iteration for key in model.steps if key.iteration is not None), default=-1)
    return range(max(model.plan.max_iterations if model.plan else 0, seen + 1))


def _steps_of(model: RunModel, t: int) -> list[Row]:
    begun = [(key.part or 0) + 1 for key in model.steps if key.iteration == t and key.name == "train-epoch"]
    epochs = max([model.plan.epochs(t) if model.plan else 1, *begun])
    found = [_sharded_row(model, "generate", t), _sharded_row(model, "ref-logprob", t)]
    for epoch in range(epochs):
        several = f" {epoch}" if epochs > 1 else ""
        found.append(_row(model.step("train-epoch", t, epoch), f"train-epoch{several}"))
        found.append(_row(model.step("validate", t, epoch), f"validate{several}"))
    found.append(_row(model.step("checkpoint", t), "checkpoint"))
    if (judged := Key("evaluate", t)) in model.steps:
        found.append(_row(model.steps[judged], "evaluate"))
    return found


def _row(step: Step, label: str) -> Row:
    return Row(label, step.state, note=note(step), work=step.work, started=step.started, ended=step.ended)


def _sharded_row(model: RunModel, name: str, t: int) -> Row:
    """All shards of a step in one row."""
    steps = [step for key, step in model.steps.items() if (key.name, key.iteration) == (name, t)]
    planned = max(model.plan.shards if model.plan else 1, len(steps), 1)
    if planned == 1:
        return _row(steps[0] if steps else Step(Key(name, t, 0)), name)
    num_ended = sum(step.state in _ENDED for step in steps)
    starts = [step.started for step in steps if step.started is not None]
    state = _together([step.state for step in steps], all_there=len(steps) == planned)
    ends = [step.ended for step in steps if step.ended is not None]
    return Row(
        name,
        state,
        note=f"{num_ended} of {planned} shards",
        work=_summed([step.work for step in steps if step.work and not step.work.what]),
        started=min(starts, default=None),
        ended=None if state == "running" else max(ends, default=None),
    )


def _summed(works: Sequence[Work]) -> Work | None:
    """The work of several shards that have begun."""
    if not works:
        return None
    left = [work.eta_s for work in works if work.done < work.total]
    return Work(
        sum(work.done for work in works),
        sum(work.total for work in works),
        works[0].unit,
        rate=sum(work.rate or 0.0 for work in works if work.done < work.total) or None,
        eta_s=max((eta for eta in left if eta is not None), default=None),
    )


def _together(states: Sequence[StepState], *, all_there: bool) -> StepState:
    for state in ("failed", "stopped", "running", "interrupted"):
        if state in states:
            return state
    if not states or all(state == "waiting" for state in states):
        return "waiting"
    if all_there and all(state in _ENDED for state in states):
        return "reused" if all(state == "reused" for state in states) else "done"
    return "running"


def _iteration_state(model: RunModel, t: int) -> StepState:
    published = model.step("checkpoint", t)
    if published.state in _ENDED:
        return published.state
    states = [step.state for key, step in model.steps.items() if key.iteration == t]
    return _together(states, all_there=False)


def _iteration_row(model: RunModel, t: int, inner: Sequence[Row]) -> Row:
    state = _iteration_state(model, t)
    starts = [row.started for row in inner if row.started is not None]
    facts = model.step("checkpoint", t).facts
    told = [f"val_loss {loss(facts)}"] if "val_loss" in facts else []
    if facts.get("acc") is not None:
        told.append(f"acc {float(facts['acc']):.2f}")
    if model.best == t and len(model.decisions) > 1:
        told.append("best")
    words = dict.fromkeys((model.outcomes.get(t, ""), model.decisions.get(t, "")))
    told += [_TOLD[word] for word in words if word in _TOLD]
    ended = model.step("checkpoint", t).ended if state in _ENDED else None
    started = min(starts, default=None)
    return Row(f"iteration {t}", state, note=", ".join(told), started=started, ended=ended)


def loss(facts: dict[str, Any]) -> str:
    """val_loss of a validation or an iteration."""
    return "not finite" if facts["val_loss"] is None else number(float(facts["val_loss"]))


def note(step: Step) -> str:
    """What a finished step is worth telling, in a few words."""
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
        return f"val_loss {loss(facts)}"
    except (KeyError, TypeError, ValueError):
        return ""
