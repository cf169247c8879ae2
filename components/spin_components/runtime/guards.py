"""What surrounds a running step: failures and full disks, and its progress as events and log lines."""

from __future__ import annotations

import errno
import logging
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager

from spin_components.errors import SpinError, StorageError
from spin_components.record.events import REPEATS, EventLog, Progress
from spin_components.runtime.process import REPEAT
from spin_components.store.base import RunStore

logger = logging.getLogger(__name__)

_LOG_INTERVAL_S = 2.0


@contextmanager
def failures_recorded(events: EventLog) -> Iterator[None]:
    """Record the start of a step, whether it is a repeat, and how it failed if it does, as events."""
    events.write("start", pid=os.getpid())
    if repeat := os.environ.get(REPEAT, ""):
        with closing(events.apart(REPEATS)) as repeats:
            repeats.write("warning", message=repeat)
    try:
        yield
    except SpinError as error:
        events.write("fail", error=type(error).__name__, message=str(error), exit_code=error.exit_code)
        raise
    except Exception as error:
        events.write(
            "fail", error=type(error).__name__, message=str(error), exit_code=1, traceback=traceback.format_exc()
        )
        raise


@contextmanager
def full_disk_explained(run: RunStore) -> Iterator[None]:
    """Name the folder whose disk is full.

    Raises:
        StorageError: no space is left.
    """
    try:
        yield
    except SpinError:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        raise StorageError(
            f"no space is left below {run.scratch}; free some, and run the same command ({error})"
        ) from error


def _is_full(error: Exception) -> bool:
    """Whether a disk is full; libraries that write files themselves say so only in the message."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


class LoggedProgress(Progress):
    """Progress with a log line every few seconds, e.g. "scored 8 of 32 pairs"."""

    def __init__(self, events: EventLog, total: int, unit: str, verb: str) -> None:
        super().__init__(events, total, unit)
        self._line, self._last, self._logged = f"{verb} %d of {total} {unit}", total, time.monotonic()

    def update(self, done: int, *, num_tokens: int | None = None) -> None:
        super().update(done, num_tokens=num_tokens)
        if time.monotonic() - self._logged > _LOG_INTERVAL_S or done == self._last:
            self._logged = time.monotonic()
            logger.info(self._line, done)


class TransferEvents:
    """Records transfers that take a while as events; called by the run's storage."""

    def __init__(self, events: EventLog) -> None:
        self._events, self._written = events, time.monotonic()
        self._what, self._since = "", (time.monotonic(), 0)

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._since = what, (now, done)
        if now - self._written > _LOG_INTERVAL_S:
            self._written = now
            began, before = self._since
            rate = (done - before) / max(now - began, 1e-6)
            fields = {"rate": round(rate / 2**20, 1), "eta_s": round((total - done) / rate, 1)} if rate > 0 else {}
            self._events.write("transfer", what=what, done=done >> 20, total=total >> 20, unit="MiB", **fields)
            logger.info("%s: %d of %d MiB", what, done >> 20, total >> 20)
