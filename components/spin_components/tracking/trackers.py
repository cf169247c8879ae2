"""Trackers of a step, each in a thread of its own, so that a slow or failing tracker does not stop training."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from spin_components.settings.settings import Settings
from spin_components.store.base import RunStore
from spin_components.tracking.tracker import AttemptState, Branch, Point, Series, Tracker

logger = logging.getLogger(__name__)


_MAX_POINTS = 20_000


_FLUSH_EVERY_S = 15.0


_TIMEOUT_S = 30.0


_RETRY_S = 10.0


def open_trackers(
    run: RunStore, settings: Settings, warn: Callable[[str], None], branch: Branch = "self-play"
) -> Trackers | None:
    """Create the trackers that `[tracking]` enables; None if there are none.

    Args:
        run: the run; stores the trackers' state.
        settings: settings of the run, with this attempt's `[tracking]`.
        warn: called with a message when a tracker fails.
        branch: what the metrics will be of.
    """
    tracking, openers = settings.tracking, dict[str, Callable[[], Tracker]]()
    if tracking.tensorboard:
        from spin_components.tracking.tensorboard import TensorBoardTracker

        openers["TensorBoard"] = lambda: TensorBoardTracker(run, branch)
    if tracking.mlflow_uri:
        from spin_components.tracking.mlflow import MlflowTracker

        openers["MLflow"] = lambda: MlflowTracker(run, settings, branch)
    if tracking.wandb_project:
        from spin_components.tracking.wandb import WandbTracker

        openers["Weights & Biases"] = lambda: WandbTracker(run, settings, branch)
    return Trackers(openers, warn) if openers else None


class Trackers:
    """Sends points to several trackers.

    Args:
        openers: functions that create the trackers, by the trackers' names.
        warn: called with a message when a tracker fails.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Tracker]], warn: Callable[[str], None]) -> None:
        self._workers = [_Worker(name, opener, warn) for name, opener in openers.items()]
        self._timeout_s = _TIMEOUT_S

    def log(self, series: Series, step: int, values: Mapping[str, float]) -> None:
        """Queue values for every tracker; returns immediately."""
        point = Point(series, step, dict(values))
        for worker in self._workers:
            worker.put(point)

    def flush(self) -> None:
        """Wait, for a limited time, until all trackers have flushed."""
        self._wait([worker.request(None) for worker in self._workers])

    def close(self, state: AttemptState) -> None:
        """Wait, for a limited time, until all trackers are closed, and warn of points that were not delivered."""
        self._wait([worker.request(state) for worker in self._workers])
        for worker in self._workers:
            worker.warn_of_lost_points()

    def _wait(self, requests: Sequence[threading.Event]) -> None:
        deadline = time.monotonic() + self._timeout_s
        for handled in requests:
            if not handled.wait(max(0.0, deadline - time.monotonic())):
                self._timeout_s = 1.0  # do not wait the full time for a hanging tracker again


@dataclass(frozen=True, slots=True)
class _Request:
    """Request to flush, or to close if a state is given; `handled` is set when that is done or has failed."""

    state: AttemptState | None
    handled: threading.Event = field(default_factory=threading.Event)


class _Worker:
    """A tracker with its thread and a queue of points.

    The thread is a daemon, so that a hanging library does not keep the process alive.
    """

    def __init__(self, name: str, opener: Callable[[], Tracker], warn: Callable[[str], None]) -> None:
        self._name, self._opener, self._warn = name, opener, warn
        self._tracker: Tracker | None = None
        self._incoming: queue.SimpleQueue[Point | _Request] = queue.SimpleQueue()
        self._points: deque[Point] = deque()
        self._num_put = self._num_delivered = 0
        self._failing = False
        threading.Thread(target=self._work, name=f"tracker {name}", daemon=True).start()

    def put(self, point: Point) -> None:
        """Queue a point; above the limit the oldest one is dropped."""
        self._num_put += 1
        self._incoming.put(point)

    def request(self, state: AttemptState | None) -> threading.Event:
        """Request a flush, or a close if a state is given; the returned event is set once it was handled."""
        request = _Request(state)
        self._incoming.put(request)
        return request.handled

    def warn_of_lost_points(self) -> None:
        """Warn of points that were not delivered; called after closing."""
        if lost := self._num_put - self._num_delivered:
            self._warn(f"{lost} points were not delivered to {self._name}; the run's own metrics contain them")

    def _work(self) -> None:
        next_s = time.monotonic()
        while True:
            requests = self._receive(max(0.0, next_s - time.monotonic()))
            state = next((request.state for request in requests if request.state), None)
            if requests or time.monotonic() >= next_s:
                self._deliver(state)
                next_s = time.monotonic() + (_RETRY_S if self._failing else _FLUSH_EVERY_S)
            for request in requests:
                request.handled.set()
            if state:
                return

    def _receive(self, timeout_s: float) -> list[_Request]:
        """Move incoming points to the queue until the timeout or the first request; returns the requests."""
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
            if len(self._points) > _MAX_POINTS:
                self._points.popleft()
        return requests

    def _deliver(self, state: AttemptState | None) -> None:
        """Send queued points to the tracker; a tracker that fails is opened again the next time."""
        try:
            self._tracker = self._tracker or self._opener()
            self._tracker.log(self._points)
            self._num_delivered += len(self._points)
            self._points.clear()
            if state:
                self._tracker.close(state)
            else:
                self._tracker.flush()
            self._failing = False
        except Exception as error:  # a tracker's library may raise anything; training continues
            self._tracker = None
            if not self._failing:
                self._failing = True
                self._warn(f"{self._name} failed: {_one_line(error)}. Training continues without it")


def _one_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}".rstrip(":. ")
