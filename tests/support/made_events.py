"""Builders of events in the form that steps write."""

from __future__ import annotations

from typing import Any

Event = dict[str, Any]
PLAN = {"name": "tiny", "max_iterations": 2, "max_epochs": 1, "shards": 1, "deadline": None}


def event(
    time: float, kind: str, step: str, iteration: int | None = None, part: int | None = None, **more: Any
) -> Event:
    """One event of a step; `part` is its shard or epoch."""
    labels: Event = {"step": step}
    if iteration is not None:
        labels["iteration"] = iteration
    if part is not None:
        labels["shard" if step in ("generate", "ref-logprob") else "epoch"] = part
    return {"time": time, "kind": kind, **labels, **more}


def prepared(start: float = 0.0, **plan: Any) -> list[Event]:
    """Events of prepare, which takes two seconds."""
    return [
        event(start, "start", "prepare", pid=1),
        event(start, "plan", "prepare", **{**PLAN, **plan}),
        event(start + 2, "done", "prepare", facts={"num_train": 32, "num_validation": 16}, duration_s=2.0),
    ]


def validated(start: float, iteration: int, val_loss: float, epoch: int = 0) -> list[Event]:
    """Events of a validation, which takes a second."""
    facts = {"val_loss": val_loss, "num_answers": 16}
    return [
        event(start, "start", "validate", iteration, epoch, pid=1),
        event(start + 1, "done", "validate", iteration, epoch, facts=facts, duration_s=1.0),
    ]


def generated(start: float, iteration: int, shard: int = 0) -> list[Event]:
    """Events of a shard of 4 answers, which takes two seconds."""
    facts = {"num_pairs": 4, "tokens_per_s": 50.0, "engine": "transformers"}
    sample = {"index": 0, "prompt": "What is 1 + 1?", "actual": "2", "generated": "3", "finish_reason": "stop"}
    return [
        event(start, "start", "generate", iteration, shard, pid=1),
        event(
            start + 1, "progress", "generate", iteration, shard, done=2, total=4, unit="answers", rate=2.0, eta_s=1.0
        ),
        event(start + 2, "samples", "generate", iteration, shard, samples=[sample]),
        event(start + 2, "done", "generate", iteration, shard, facts=facts, duration_s=2.0),
    ]


def metrics(time: float, global_step: int, loss: float, iteration: int = 0, **more: Any) -> Event:
    """The metrics event of a training step."""
    values = {"loss": loss, "acc": 0.5, "rewards_actual_mean": 0.25, "rewards_generated_mean": -0.5, **more}
    return event(time, "metrics", "train-epoch", iteration, 0, global_step=global_step, **values)


def trained(start: float, iteration: int, losses: dict[int, float]) -> list[Event]:
    """Events of an unfinished epoch with one step a second."""
    events = [event(start, "start", "train-epoch", iteration, 0, pid=1)]
    for number, (step, loss) in enumerate(losses.items(), start=1):
        events.append(metrics(start + number, step, loss, iteration))
        work = {"done": number, "total": 4, "unit": "steps", "rate": 1.0, "eta_s": 4.0 - number}
        events.append(event(start + number, "progress", "train-epoch", iteration, 0, **work))
    return events


def published(start: float, iteration: int, val_loss: float | None, decision: str, **more: Any) -> list[Event]:
    """Events of a checkpoint."""
    facts = {"iteration": iteration, "val_loss": val_loss, "acc": 0.75, "decision": decision}
    fields = {"decision": decision, "val_loss": val_loss, "iteration_best": iteration, **more}
    return [
        event(start, "start", "checkpoint", iteration, pid=1),
        event(start, "done", "checkpoint", iteration, facts=facts, duration_s=0.1),
        event(start, "published", "checkpoint", iteration, **fields),
    ]
