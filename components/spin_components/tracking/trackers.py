"""All trackers of a step behind one call that never waits, and never fails."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from spin_components.settings import Settings
from spin_components.store.run import RunStore

logger = logging.getLogger(__name__)

Series = Literal["train", "validation", "iteration", "evaluation"]
Outcome = Literal["running", "ended", "failed"]
"""How the attempt stands when a step lets go: other steps follow, this was the last, or this one failed."""

_MOST_POINTS = 20_000
_FLUSH_EVERY_S = 15.0
_PATIENCE_S = 30.0
_RETRY_S = 10.0


@dataclass(frozen=True, slots=True)
class Point:
    """Values of one optimizer step.

    Attributes:
        series: `train` for every step, `validation` where val_loss is known, `iteration` and
            `evaluation` once an iteration.
        step: optimizer steps done in the whole run.
        values: by name; finite.
        time: seconds since 1970.
    """

    series: Series
    step: int
    values: Mapping[str, float]
    time: float = field(default_factory=time.time)


class Tracker(Protocol):
    """A place that metrics go to; any call may raise what it likes.

    Steps may be told again after an attempt was cut off: a tracker replaces what it has of them, or passes them over.
    """

    def log(self, points: Collection[Point]) -> None:
        """Take points; those of one series come in the order of their steps."""

    def flush(self) -> None:
        """Have them where others can see them."""

    def close(self, outcome: Outcome) -> None:
        """Flush, and let go."""


def open_trackers(run: RunStore, settings: Settings, warn: Callable[[str], None]) -> Trackers | None:
    """What `[tracking]` asks for; None where it asks for nothing.

    Args:
        run: whose metrics; keeps what trackers need to go on.
        settings: the run's, with this attempt's `[tracking]`.
        warn: told once when a tracker cannot be used.
    """
    wanted, openers = settings.tracking, dict[str, Callable[[], Tracker]]()
    if wanted.tensorboard:
        from spin_components.tracking.tensorboard import TensorBoardTracker

        openers["TensorBoard"] = lambda: TensorBoardTracker(run)
    if wanted.mlflow_uri:
        from spin_components.tracking.mlflow import MlflowTracker

        openers["MLflow"] = lambda: MlflowTracker(run, settings)
    if wanted.wandb_project:
        from spin_components.tracking.wandb import WandbTracker

        openers["Weights & Biases"] = lambda: WandbTracker(run, settings)
    return Trackers(openers, warn) if openers else None


class Trackers:
    """Hands points to each tracker in a thread of its own."""

    def __init__(self, openers: Mapping[str, Callable[[], Tracker]], warn: Callable[[str], None]) -> None:
        self._feeds = [_Feed(name, opener, warn) for name, opener in openers.items()]
        self._patience_s = _PATIENCE_S

    def log(self, series: Series, step: int, values: Mapping[str, float]) -> None:
        """Send values on; returns at once."""
        point = Point(series, step, dict(values))
        for feed in self._feeds:
            feed.put(point)

    def flush(self) -> None:
        """Wait a little until trackers that answer have everything."""
        self._wait([feed.ask(None) for feed in self._feeds])

    def close(self, outcome: Outcome) -> None:
        """Flush and let go; trackers that do not answer are left behind."""
        self._wait([feed.ask(outcome) for feed in self._feeds])
        for feed in self._feeds:
            feed.tell_what_is_lost()

    def _wait(self, answers: Sequence[threading.Event]) -> None:
        deadline = time.monotonic() + self._patience_s
        for answer in answers:
            if not answer.wait(max(0.0, deadline - time.monotonic())):
                self._patience_s = 1.0  # it was waited for once; a step shall not be held up again


@dataclass(frozen=True, slots=True)
class _Request:
    """To flush, or with an outcome to close; answered when that is done or has failed."""

    outcome: Outcome | None
    answered: threading.Event = field(default_factory=threading.Event)


class _Feed:
    """One tracker, its thread, and the points it has not taken yet.

    The thread is a daemon: a library that hangs does not keep the step from ending.
    """

    def __init__(self, name: str, opener: Callable[[], Tracker], warn: Callable[[str], None]) -> None:
        self._name, self._opener, self._warn = name, opener, warn
        self._tracker: Tracker | None = None
        self._incoming: queue.SimpleQueue[Point | _Request] = queue.SimpleQueue()
        self._points: deque[Point] = deque()
        self._num_put = self._num_taken = 0
        self._failing = False
        threading.Thread(target=self._work, name=f"tracker {name}", daemon=True).start()

    def put(self, point: Point) -> None:
        """Take a point; of those that wait too long, the oldest is lost."""
        self._num_put += 1
        self._incoming.put(point)

    def ask(self, outcome: Outcome | None) -> threading.Event:
        """Have everything stored, and with an outcome let go; the event is set when that is over."""
        request = _Request(outcome)
        self._incoming.put(request)
        return request.answered

    def tell_what_is_lost(self) -> None:
        """Warn of points that were not taken; to be called when nothing more comes."""
        if lost := self._num_put - self._num_taken:
            self._warn(f"{self._name} did not get {lost} points; the run's own metrics have them")

    def _work(self) -> None:
        next_s = time.monotonic()
        while True:
            requests = self._receive(max(0.0, next_s - time.monotonic()))
            outcome = next((request.outcome for request in requests if request.outcome), None)
            if requests or time.monotonic() >= next_s:
                self._attend(outcome)
                next_s = time.monotonic() + (_RETRY_S if self._failing else _FLUSH_EVERY_S)
            for request in requests:
                request.answered.set()
            if outcome:
                return

    def _receive(self, timeout_s: float) -> list[_Request]:
        """Take in what comes within a time, or until there is a request."""
        deadline = time.monotonic() + timeout_s
        requests: list[_Request] = []
        while not requests or not self._incoming.empty():
            try:
                item = self._incoming.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if isinstance(item, _Request):
                requests.append(item)
                continue
            self._points.append(item)
            if len(self._points) > _MOST_POINTS:
                self._points.popleft()
        return requests

    def _attend(self, outcome: Outcome | None) -> None:
        """Hand over what has come; a tracker that fails is opened anew the next time."""
        try:
            self._tracker = self._tracker or self._opener()
            self._tracker.log(self._points)
            self._num_taken += len(self._points)
            self._points.clear()
            if outcome:
                self._tracker.close(outcome)
            else:
                self._tracker.flush()
            self._failing = False
        except Exception as error:  # whatever a tracker's library raises, training goes on
            self._tracker = None
            if not self._failing:
                self._failing = True
                self._warn(f"{self._name} takes no metrics: {_in_a_line(error)}. Training goes on without it")


def _in_a_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}".rstrip(":. ")
