"""Event log of a run: progress and metrics as JSON lines below the run's `events/`.

Every event has `time` (seconds since 1970, by the storage's clock where the machine's differs from it), `kind`,
`attempt` (the number of the attempt at the run), `count` (the number of the event in its file), and the labels of its
step: `step`, the step's name in the DAG, and `iteration` (-1: the base model; -2: the warm-up; -100 - t: the control of
iteration t), `epoch` and `shard` where the step has them. Other fields by kind:

    kind        written when                         fields
    start       a step starts                        pid
    plan        prepare has read the settings        name, max_iterations, max_epochs (a number, or a list with one
                                                     per iteration), shards (0: prepare chooses them, and its
                                                     facts have num_shards), deadline (time or null); warm_up (its
                                                     largest number of epochs) and control (true) where they are on
    progress    work is in progress                  done, total, unit, rate (units per second), eta_s; generate also
                                                     num_tokens, tokens_per_s
    transfer    a long transfer is in progress       what, and the fields of progress, in MiB
    metrics     an optimizer step is done            global_step, consumed_samples, step_time, loss, acc, rewards_*,
                                                     avg_generated_lengths, grad_norm, lr; sft_loss if it is part
                                                     of the objective; current_advantage_mean, current_acc and, where
                                                     a pair has a third answer, historical_advantage_mean,
                                                     historical_acc with the loss "triplet". Of a warm-up or a
                                                     control: no acc, rewards_* and lengths, and its own global_step
    validation  validation within an epoch is done   global_step, val_loss
    samples     a shard is generated                 samples, each with index, prompt, actual, generated, finish_reason
    resume      an epoch is resumed from a save      done (steps of the epoch)
    save        a save within an epoch is complete   done
    warning     a problem needs attention            message
    reuse       the step had finished before         finished_at
    done        a step's manifest is written         facts (the manifest's, without samples), duration_s
    published   checkpoint has updated the pointers  decision, outcome, reason, val_loss (null: not finite), next (the
                                                     iteration whose policy is the next reference; -1: the base model;
                                                     null: none), iteration_best (as next), freed_bytes
    stop        the attempt's time limit is reached  reason
    fail        a step ends with an error            error, message, exit_code, traceback (unless it is a SpinError)

Events of kind metrics, progress and transfer are rate-limited: of those within an interval only the newest is kept, and
it is written before the next event of another kind. The last one is therefore always written, but not every one; an
epoch's `metrics.json` has all steps. Each process writes its own file (in a bucket, a series of files). Events are
ordered by attempt, within an attempt by time, and within a file as they were written, whatever the clocks showed.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from contextlib import suppress
from typing import Any

from spin_components.store import layout
from spin_components.store.base import RunStore

logger = logging.getLogger(__name__)

_CHUNK = re.compile(r"-\d{5}\.jsonl$")
"""End of the name of an object in a writer's series; see `store.remote.ChunkAppender`."""

INTERVALS_S = {"metrics": 0.2, "progress": 0.5, "transfer": 2.0}
"""Minimum interval, seconds, between two events of a rate-limited kind."""

_MAX_TIME_S = 253402300800.0
"""The year 10000, in seconds since 1970."""

REPEATS = "repeats"
"""In the names of files whose events are repeats of steps, so that a reader need not read all events to find them."""


class EventLog:
    """Writer of events; a failing write is logged as a warning and does not raise. Thread-safe.

    Args:
        run: the run.
        labels: fields of every event: step, iteration, epoch, shard; those that are None are left out.
        attempt: number of the attempt among those at the run; 0 leaves it and the count out.
        offset_s: seconds by which the storage's clock is ahead of this machine's.
        enabled: whether events are written; only one rank writes.
        name: part of the files' names; empty for the values of the labels.
    """

    def __init__(
        self,
        run: RunStore,
        labels: dict[str, Any],
        *,
        attempt: int = 0,
        offset_s: float = 0.0,
        enabled: bool = True,
        name: str = "",
    ) -> None:
        self.labels = {name: value for name, value in labels.items() if value is not None}
        self.enabled = enabled
        self._run = run
        name = name or "-".join(str(value) for value in self.labels.values())
        key = f"{layout.EVENTS}/{time.time_ns():020d}-{name}-{os.getpid()}.jsonl"
        self._lines = run.appender(key) if enabled else None
        self._lock = threading.Lock()
        self._written: dict[str, float] = {}
        self._held: dict[str, dict[str, Any]] = {}
        self._broken = False
        self._attempt, self._count, self._offset_s = attempt, 0, offset_s
        self._began, self._began_uptime_s = time.time() + offset_s, time.monotonic()

    def write(self, kind: str, **fields: Any) -> None:
        """Write one event, or hold it back if its kind is rate-limited; `fields` are the event's own fields."""
        if self._lines is None:
            return
        now = self._began + time.monotonic() - self._began_uptime_s  # goes on where the machine's clock is set back
        event = {"time": round(now, 3), "kind": kind, **self.labels, **fields}
        interval_s = INTERVALS_S.get(kind)
        with self._lock:
            if interval_s is None:
                self._write_held()
                self._append(event)
            elif (uptime_s := time.monotonic()) - self._written.get(kind, -interval_s) >= interval_s:
                self._written[kind] = uptime_s
                self._held.pop(kind, None)
                self._append(event)
            else:
                self._held[kind] = event

    def apart(self, name: str) -> EventLog:
        """Another log with the same labels, whose files have a name of their own."""
        return EventLog(
            self._run, self.labels, attempt=self._attempt, offset_s=self._offset_s, enabled=self.enabled, name=name
        )

    def close(self) -> None:
        """Write held-back events and store everything."""
        if self._lines is not None:
            with self._lock:
                self._write_held()
            self._lines.close()

    def _write_held(self) -> None:
        held, self._held = self._held, {}
        for event in held.values():
            self._append(event)

    def _append(self, event: dict[str, Any]) -> None:
        assert self._lines is not None
        if self._attempt:
            self._count += 1
            event |= {"attempt": self._attempt, "count": self._count}
        try:
            self._lines.write(json.dumps(event, default=str))
        except (TypeError, ValueError, RecursionError) as error:
            if not self._broken:
                logger.warning("an event of kind %s could not be written: %s", event["kind"], error)
            self._broken = True


class Progress:
    """Writes progress events with rate and remaining time.

    Args:
        events: event log of the step.
        total: number of units in total.
        unit: name of the unit, in the plural.
        done: number of units done by an earlier attempt, which do not count for the rate.
    """

    def __init__(self, events: EventLog, total: int, unit: str, *, done: int = 0) -> None:
        self._events, self._total, self._unit, self._done_before = events, total, unit, done
        self._started = time.monotonic()
        events.write("progress", done=done, total=total, unit=unit)

    def update(self, done: int, *, num_tokens: int | None = None) -> None:
        """Report the number of units done and, optionally, of tokens generated for them."""
        elapsed_s = max(time.monotonic() - self._started, 1e-6)
        rate = (done - self._done_before) / elapsed_s
        fields: dict[str, Any] = {"done": done, "total": self._total, "unit": self._unit, "rate": round(rate, 3)}
        if rate > 0:
            fields["eta_s"] = round((self._total - done) / rate, 1)
        if num_tokens is not None:
            fields |= {"num_tokens": num_tokens, "tokens_per_s": round(num_tokens / elapsed_s, 1)}
        self._events.write("progress", **fields)


class EventTail:
    """Reader of new events.

    Args:
        run: the run.
        skip: whether to skip the events that exist already.
    """

    def __init__(self, run: RunStore, *, skip: bool = False) -> None:
        self._run = run
        self._offsets: dict[str, int] = run.sizes(layout.EVENTS) if skip else {}
        self._latest: dict[str, float] = {}  # by writer: the latest time in its files

    def new(self) -> list[dict[str, Any]]:
        """Return the complete events since the last call, oldest first."""
        events: list[tuple[tuple[int, float], dict[str, Any]]] = []
        for key, size in sorted(self._run.sizes(layout.EVENTS).items()):
            offset = self._offsets.get(key, 0)
            if size <= offset:
                continue
            for line in (self._run.read(key, offset) or b"").splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break  # still being written, or truncated because the writer died
                self._offsets[key] = self._offsets.get(key, 0) + len(line)
                with suppress(ValueError, RecursionError):
                    event = json.loads(line)
                    if _is_event(event):
                        events.append((self._order(key, event), event))
        return [event for _, event in sorted(events, key=lambda each: each[0])]

    def _order(self, key: str, event: dict[str, Any]) -> tuple[int, float]:
        """The attempt and the time of an event, which is never before that of the events above it in its file."""
        writer = _CHUNK.sub("", key)
        self._latest[writer] = max(float(event["time"]), self._latest.get(writer, -math.inf))
        attempt = event.get("attempt")
        return attempt if isinstance(attempt, int) else 0, self._latest[writer]


def _is_event(value: Any) -> bool:
    """Whether a line's content is an event: it has a time, a kind, and labels of their types."""
    if not isinstance(value, dict):
        return False
    time_s, labels = value.get("time"), (value.get(name) for name in ("iteration", "epoch", "shard"))
    return (
        isinstance(time_s, (int, float))
        and not isinstance(time_s, bool)
        and -_MAX_TIME_S < time_s < _MAX_TIME_S
        and isinstance(value.get("kind"), str)
        and isinstance(value.get("step", ""), str)
        and all(label is None or type(label) is int for label in labels)
    )


def read_repeats(run: RunStore) -> list[dict[str, Any]]:
    """Return the `warning` events of steps that were begun again, oldest first."""
    keys = sorted(key for key in run.sizes(layout.EVENTS) if f"-{REPEATS}-" in key)
    lines = [line for key in keys for line in (run.read(key) or b"").splitlines(keepends=True)]
    events = []
    for line in lines:
        with suppress(ValueError):
            event = json.loads(line)
            if _is_event(event) and event["kind"] == "warning":
                events.append(event)
    return events


def read_events(run: RunStore) -> list[dict[str, Any]]:
    """Return all complete events of a run, oldest first."""
    return EventTail(run).new()
