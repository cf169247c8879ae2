"""A heartbeat in the run's storage, written by the step that started a TrainJob; without it the job ends itself.

A step that is killed cannot delete its job, and a job that nobody follows would hold its machines for nothing. A
retried step that follows the job writes the heartbeat from then on; the job waits long enough for that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from spin_components.errors import SpinError
from spin_components.machine import seconds
from spin_components.store import layout
from spin_components.store.base import RunStore

logger = logging.getLogger(__name__)

PATIENCE = "SPIN_UNWATCHED_S"
"""Environment variable: seconds for which a job goes on without a heartbeat; 600 by default."""

_BEATS_A_WAIT = 10


class Watcher:
    """Writes the heartbeat of a job, at most ten times in the time for which the job waits."""

    def __init__(self, run: RunStore, iteration: int, epoch: int) -> None:
        self._run, self._key = run, layout.watched(iteration, epoch)
        self._every_s, self._written = seconds(PATIENCE, 600) / _BEATS_A_WAIT, 0.0

    def sign(self) -> None:
        """Write the heartbeat where it is due."""
        if time.monotonic() - self._written >= self._every_s or not self._written:
            self._run.write_json(self._key, {"time": time.time()})
            self._written = time.monotonic()


def end_unwatched(run: RunStore, iteration: int, epoch: int, end: Callable[[], None]) -> None:
    """Call `end`, from a thread, when the heartbeat has not changed for too long.

    Only this machine's clock is read: what counts is that the heartbeat changes, not the time in it.
    """
    key, patience_s = layout.watched(iteration, epoch), seconds(PATIENCE, 600)

    def watch() -> None:
        last, changed = run.read(key), time.monotonic()
        while time.monotonic() - changed < patience_s:
            time.sleep(patience_s / _BEATS_A_WAIT)
            try:
                beat = run.read(key)
            except (SpinError, OSError) as error:
                logger.warning("the step's heartbeat cannot be read: %s", error)
                continue
            if beat != last:
                last, changed = beat, time.monotonic()
        logger.error("the step that started this job has written no heartbeat for %.0f s; the job ends", patience_s)
        end()

    threading.Thread(target=watch, name="watch", daemon=True).start()
