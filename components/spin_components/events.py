"""Progress and metrics as they happen: one JSON line an event, below the run's `events/`."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import Any

from spin_components.store import layout
from spin_components.store.run import RunStore


class EventLog:
    """Appends events; storage that fails is a warning, never a reason for a step to fail.

    Args:
        run: where they go.
        labels: fields that every event of this process carries: step, iteration, epoch, shard.
        enabled: off for all ranks but one.
    """

    def __init__(self, run: RunStore, labels: dict[str, Any], *, enabled: bool = True) -> None:
        self.labels = {name: value for name, value in labels.items() if value is not None}
        name = "-".join(str(value) for value in self.labels.values())
        key = f"{layout.EVENTS}/{time.time_ns():020d}-{name}-{os.getpid()}.jsonl"
        self._lines = run.appender(key) if enabled else None

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event with the time in seconds since 1970."""
        if self._lines is not None:
            event = {"time": round(time.time(), 3), "kind": kind, **self.labels, **fields}
            self._lines.write(json.dumps(event, default=str))

    def close(self) -> None:
        """Have all events stored."""
        if self._lines is not None:
            self._lines.close()


class EventTail:
    """Reads events as they are appended.

    Args:
        run: whose events.
        skip: pass over what is there already.
    """

    def __init__(self, run: RunStore, *, skip: bool = False) -> None:
        self._run = run
        self._offsets: dict[str, int] = run.sizes(layout.EVENTS) if skip else {}

    def new(self) -> list[dict[str, Any]]:
        """Whole events since the last call, oldest first."""
        events = []
        for key, size in sorted(self._run.sizes(layout.EVENTS).items()):
            offset = self._offsets.get(key, 0)
            if size <= offset:
                continue
            for line in (self._run.read(key, offset) or b"").splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break  # still being written, or cut when its writer died
                self._offsets[key] = self._offsets.get(key, 0) + len(line)
                with suppress(ValueError):
                    events.append(json.loads(line))
        return sorted(events, key=lambda event: float(event["time"]))


def read_events(run: RunStore) -> list[dict[str, Any]]:
    """Every whole event of a run, oldest first."""
    return EventTail(run).new()
