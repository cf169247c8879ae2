"""Events of the newest attempt at a run, and the failures that its steps ended with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from spin_components.record.events import read_events
from spin_components.store import layout
from spin_components.store.base import RunStore


def newest_attempt_of(run: RunStore, events: Iterable[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the events of the newest attempt, by its number; by time where a version without numbers wrote them.

    Args:
        run: the run, of which an attempt has begun.
        events: all of the run's; read from it if not given.
    """
    attempt = run.read_json(layout.ATTEMPT)
    number, started = attempt.get("number"), attempt["started"]
    events = read_events(run) if events is None else events
    if number:
        return [event for event in events if event.get("attempt", 0) >= number]
    return [event for event in events if event["time"] >= started]


def last_failures(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the `fail` events of steps that were not begun again; an earlier try is not how a step ended."""
    failures: dict[tuple[Any, ...], dict[str, Any]] = {}
    for event in events:
        step = tuple(event.get(name) for name in ("step", "iteration", "epoch", "shard"))
        if event["kind"] == "start":
            failures.pop(step, None)
        elif event["kind"] == "fail":
            failures[step] = event
    return list(failures.values())
