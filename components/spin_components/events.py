"""Progress and metrics as they happen: one JSON line an event, below the run's `events/`.

Every event has `time` (seconds since 1970), `kind`, and the labels of the step that wrote it: `step`, its name in the
DAG, and `iteration` (-1: the base model), `epoch` and `shard` where it has them. Beside these:

    kind        when                                 fields
    start       a step begins                        pid
    plan        prepare knows the attempt's shape    name, max_iterations, max_epochs (a number, or one an
                                                     iteration), shards, deadline (time or null)
    progress    work goes on                         done, total, unit, rate (units a second), eta_s; generate also
                                                     num_tokens, tokens_per_s
    transfer    a long transfer goes on              what, and the fields of progress, in MiB
    metrics     an optimizer step is done            global_step, consumed_samples, step_time, loss, acc, rewards_*,
                                                     avg_generated_lengths, grad_norm, lr; sft_loss where it is
                                                     part of the objective
    validation  val_loss inside an epoch is known    global_step, val_loss
    samples     a shard is generated                 samples: index, prompt, actual, generated, finish_reason each
    resume      an epoch goes on from a save         done (steps of the epoch)
    save        a save inside an epoch stands        done
    warning     a person should know something       message
    reuse       a finished step was found            finished_at
    done        a step's manifest is written         facts (its manifest's, without samples), duration_s
    published   checkpoint has moved the pointers    decision, outcome, reason, val_loss (null: not finite), next (the
                                                     iteration whose policy is the next reference; -1: the base model;
                                                     null: none), iteration_best (likewise), freed_bytes
    stop        the attempt's time is up             reason
    fail        a step ends with an error            error, message, exit_code, traceback (of what is not a SpinError)

Metrics, progress and transfers are limited to a few a second: of those that come faster the newest is kept, and is
written before whatever comes next. So the last of them is always there, but not each of them; an epoch's `metrics.json`
has every step. A process writes one file (a few in a bucket); order is by time, and files of one attempt overlap.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from contextlib import suppress
from typing import Any

from spin_components.store import layout
from spin_components.store.run import RunStore

logger = logging.getLogger(__name__)

INTERVALS_S = {"metrics": 0.2, "progress": 0.5, "transfer": 2.0}
"""Seconds between two events of a kind that may come often."""


class EventLog:
    """Appends events; what cannot be written is a warning, never a reason for a step to fail.

    Threads may share one.

    Args:
        run: where they go.
        labels: fields that every event of this process carries: step, iteration, epoch, shard.
        enabled: off for all ranks but one.
    """

    def __init__(self, run: RunStore, labels: dict[str, Any], *, enabled: bool = True) -> None:
        self.labels = {name: value for name, value in labels.items() if value is not None}
        self.enabled = enabled
        name = "-".join(str(value) for value in self.labels.values())
        key = f"{layout.EVENTS}/{time.time_ns():020d}-{name}-{os.getpid()}.jsonl"
        self._lines = run.appender(key) if enabled else None
        self._lock = threading.Lock()
        self._written: dict[str, float] = {}
        self._held: dict[str, dict[str, Any]] = {}
        self._broken = False

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event, or hold it back where one of its kind was appended just now."""
        if self._lines is None:
            return
        event = {"time": round(time.time(), 3), "kind": kind, **self.labels, **fields}
        interval_s = INTERVALS_S.get(kind)
        with self._lock:
            if interval_s is None:
                self._write_held()
                self._append(event)
            elif (now := time.monotonic()) - self._written.get(kind, -interval_s) >= interval_s:
                self._written[kind] = now
                self._held.pop(kind, None)
                self._append(event)
            else:
                self._held[kind] = event

    def close(self) -> None:
        """Have all events stored."""
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
        try:
            self._lines.write(json.dumps(event, default=str))
        except (TypeError, ValueError, RecursionError) as error:
            if not self._broken:
                logger.warning("an event of kind %s is left out: %s", event["kind"], error)
            self._broken = True


class Progress:
    """Tells how far a piece of work is, how fast it goes, and when it will be done.

    Args:
        events: of the step.
        total: how many there are to do.
        unit: what is counted, in the plural.
        done: how many an earlier attempt did; they do not count for the rate.
    """

    def __init__(self, events: EventLog, total: int, unit: str, *, done: int = 0) -> None:
        self._events, self._total, self._unit, self._before = events, total, unit, done
        self._started = time.monotonic()
        events.write("progress", done=done, total=total, unit=unit)

    def update(self, done: int, *, num_tokens: int | None = None) -> None:
        """So many are done, and so many tokens were made for it."""
        passed_s = max(time.monotonic() - self._started, 1e-6)
        rate = (done - self._before) / passed_s
        fields: dict[str, Any] = {"done": done, "total": self._total, "unit": self._unit, "rate": round(rate, 3)}
        if rate > 0:
            fields["eta_s"] = round((self._total - done) / rate, 1)
        if num_tokens is not None:
            fields |= {"num_tokens": num_tokens, "tokens_per_s": round(num_tokens / passed_s, 1)}
        self._events.write("progress", **fields)


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
                    event = json.loads(line)
                    if isinstance(event, dict) and isinstance(event.get("time"), (int, float)):
                        events.append(event)
        return sorted(events, key=lambda event: float(event["time"]))


def read_events(run: RunStore) -> list[dict[str, Any]]:
    """Every whole event of a run, oldest first."""
    return EventTail(run).new()
