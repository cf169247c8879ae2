"""Heartbeat of the step that created a TrainJob, in the run's storage; without it the job ends itself.

A step that is killed cannot delete its job, which would go on holding its machines. A retried step that adopts the job
continues the heartbeat, so the job waits a while before it ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from spin_components.errors import SpinError
from spin_components.store import layout
from spin_components.store.limits import seconds
from spin_components.store.run import RunStore

logger = logging.getLogger(__name__)

PATIENCE = "SPIN_UNWATCHED_S"
"""Variable: seconds that a job goes on without a heartbeat; 600 by default."""

_SIGNS_A_WAIT = 10


class Watcher:
    """Writes the heartbeat at an interval."""

    def __init__(self, run: RunStore, iteration: int, epoch: int) -> None:
        self._run, self._key = run, layout.watched(iteration, epoch)
        self._every_s, self._given = seconds(PATIENCE, 600) / _SIGNS_A_WAIT, 0.0

    def sign(self) -> None:
        """Write the heartbeat if the interval has passed."""
        if time.monotonic() - self._given >= self._every_s or not self._given:
            self._run.write_json(self._key, {"time": time.time()})
            self._given = time.monotonic()


def end_unwatched(run: RunStore, iteration: int, epoch: int, end: Callable[[], None]) -> None:
    """Call `end` from a thread when the heartbeat has not changed for too long, by this machine's clock."""
    key, patience_s = layout.watched(iteration, epoch), seconds(PATIENCE, 600)

    def watch() -> None:
        last, changed = run.read(key), time.monotonic()
        while time.monotonic() - changed < patience_s:
            time.sleep(patience_s / _SIGNS_A_WAIT)
            try:
                sign = run.read(key)
            except (SpinError, OSError) as error:
                logger.warning("the heartbeat of the step cannot be read: %s", error)
                continue
            if sign != last:
                last, changed = sign, time.monotonic()
        logger.error("the step that created this job has sent no heartbeat for %.0f s; the job ends", patience_s)
        end()

    threading.Thread(target=watch, name="watch", daemon=True).start()
