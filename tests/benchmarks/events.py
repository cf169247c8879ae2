"""What events cost: the time a step spends in them, against the time it takes.

    python tests/benchmarks/events.py RUN_URI

RUN_URI is a finished run, whose own events say how many there were and how long its steps took. Each is written again,
as fast as it can be, into a folder and into a real S3 server; the share of the run's time follows. The limit on
metrics and progress is off, so that each write is paid for in full.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from spin_components.record import events as module
from spin_components.record.events import EventLog, read_events
from spin_components.store.base import RunStore
from spin_components.store.open import open_run
from support.s3_server import BUCKET, S3Server

_ROUNDS = 5


def main(run_uri: str) -> None:
    """Print a line a storage."""
    with open_run(run_uri) as run:
        events = read_events(run)
    working_s = sum(event["duration_s"] for event in events if event["kind"] == "done")
    sys.stdout.write(f"{len(events)} events in {working_s:.1f} s of steps\n")
    with tempfile.TemporaryDirectory() as folder:
        _report("folder", open_run(f"{folder}/run"), events, working_s)
        server = S3Server(Path(folder, "s3"))
        with mock.patch.dict("os.environ", server.variables | {"SPIN_CACHE_DIR": f"{folder}/cache"}):
            _report("S3", open_run(f"s3://{BUCKET}/run"), events, working_s)
        server.kill()


def _report(name: str, run: RunStore, events: list[dict[str, Any]], working_s: float) -> None:
    writes, rounds = [], []
    with mock.patch.object(module, "INTERVALS_S", {}):
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            log: EventLog | None = None
            for event in events:
                if event["kind"] == "start" or log is None:  # a step, and so a file, of its own
                    _close(log)
                    log = EventLog(run, {"step": event["step"]})
                fields = {key: value for key, value in event.items() if key not in ("kind", "time", "step")}
                started = time.perf_counter()
                log.write(event["kind"], **fields)
                writes.append(time.perf_counter() - started)
            _close(log)
            rounds.append(time.perf_counter() - began)
    total_s = statistics.median(rounds)
    sys.stdout.write(
        f"{name}: {statistics.median(writes) * 1e6:.0f} µs an event, {total_s * 1e3:.0f} ms for all with opening and "
        f"closing (medians): {total_s / working_s:.2%} of the steps' time\n"
    )


def _close(log: EventLog | None) -> None:
    if log is not None:
        log.close()


if __name__ == "__main__":
    main(sys.argv[1])
