"""The step that started a TrainJob gives signs of life in the run's storage; without them the job ends itself.

A step that is killed outright cannot delete its job, and a job that nobody follows would hold its machines for nothing.
A retried step that goes on with the job gives the signs from then on, so there is time for that.
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
"""Variable: how long a job goes on without a sign of its step; 600 seconds unless it says otherwise."""

_SIGNS_A_WAIT = 10


class Watcher:
    """Gives signs, at most one in a while."""

    def __init__(self, run: RunStore, iteration: int, epoch: int) -> None:
        self._run, self._key = run, layout.watched(iteration, epoch)
        self._every_s, self._given = seconds(PATIENCE, 600) / _SIGNS_A_WAIT, 0.0

    def sign(self) -> None:
        """Give a sign where one is due."""
        if time.monotonic() - self._given >= self._every_s or not self._given:
            self._run.write_json(self._key, {"time": time.time()})
            self._given = time.monotonic()


def end_unwatched(run: RunStore, iteration: int, epoch: int, end: Callable[[], None]) -> None:
    """Call `end`, from a thread, when no sign has been given for too long.

    The clock is this machine's alone: what counts is that the sign changes.
    """
    key, patience_s = layout.watched(iteration, epoch), seconds(PATIENCE, 600)

    def watch() -> None:
        last, changed = run.read(key), time.monotonic()
        while time.monotonic() - changed < patience_s:
            time.sleep(patience_s / _SIGNS_A_WAIT)
            try:
                sign = run.read(key)
            except (SpinError, OSError) as error:
                logger.warning("no sign of the step can be read: %s", error)
                continue
            if sign != last:
                last, changed = sign, time.monotonic()
        logger.error("the step that started this job has given no sign for %.0f s; it ends", patience_s)
        end()

    threading.Thread(target=watch, name="watch", daemon=True).start()
