"""Progress and metrics as they happen: one JSON line an event, one file a process, below the run's `events/`."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class EventLog:
    """Appends events; a full disk is a warning, never a reason for a step to fail.

    Args:
        folder: where event files lie.
        labels: fields that every event of this process carries: step, iteration, epoch, shard.
        enabled: off for all ranks but one.
    """

    def __init__(self, folder: Path, labels: dict[str, Any], *, enabled: bool = True) -> None:
        self.labels = {name: value for name, value in labels.items() if value is not None}
        name = "-".join(str(value) for value in self.labels.values())
        self.path = folder / f"{time.time_ns():020d}-{name}-{os.getpid()}.jsonl"
        self._broken = False
        self._enabled = enabled

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event with the time in seconds since 1970."""
        if not self._enabled:
            return
        event = {"time": round(time.time(), 3), "kind": kind, **self.labels, **fields}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event, default=str) + "\n")
        except OSError as error:
            if not self._broken:
                logger.warning("events cannot be written to %s: %s", self.path, error)
            self._broken = True


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Every whole event of a run, oldest first."""
    events = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:  # the writer died within this line
                continue
    return sorted(events, key=lambda event: float(event["time"]))
