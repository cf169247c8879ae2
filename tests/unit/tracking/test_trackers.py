from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from spin_components.errors import ConfigError
from spin_components.settings.attempt import TrackingSettings
from spin_components.settings.packages import check_packages
from spin_components.settings.settings import Settings
from spin_components.store.local import LocalRun
from spin_components.tracking import trackers as module
from spin_components.tracking.tracker import AttemptState, Point
from spin_components.tracking.trackers import Trackers, open_trackers
from support.s3_server import free_port


class RecordingTracker:
    """A tracker that records points and fails a number of times."""

    def __init__(self, fails: int = 0) -> None:
        self.points: list[Point] = []
        self.state: AttemptState | None = None
        self._fails = fails

    def log(self, points: Collection[Point]) -> None:
        if points and self._fails:
            self._fails -= 1
            raise ConnectionError("nobody listens\nat all")
        self.points += points

    def flush(self) -> None:
        pass

    def close(self, state: AttemptState) -> None:
        self.state = state


def test_points_arrive_in_order_and_the_state_last() -> None:
    kept, warnings = RecordingTracker(), list[str]()
    trackers = Trackers({"kept": lambda: kept}, warnings.append)
    for step in range(100):
        trackers.log("train", step, {"loss": step / 2})
    trackers.flush()
    assert [(point.step, point.values["loss"]) for point in kept.points] == [(step, step / 2) for step in range(100)]
    trackers.close("ended")
    assert kept.state == "ended"
    assert warnings == []


def test_a_failing_tracker_warns_once_and_gets_all_points_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    kept, other, warnings = RecordingTracker(fails=2), RecordingTracker(), list[str]()
    trackers = Trackers({"kept": lambda: kept, "other": lambda: other}, warnings.append)
    for step in range(3):
        trackers.log("train", step, {"loss": 0.5})
        trackers.flush()
    trackers.close("running")
    assert [point.step for point in kept.points] == [0, 1, 2]
    assert [point.step for point in other.points] == [0, 1, 2]
    assert warnings == ["kept failed: ConnectionError: nobody listens. Training continues without it"]


def test_points_lost_by_a_tracker_that_cannot_be_opened_are_counted() -> None:
    def refuse() -> RecordingTracker:
        raise OSError("no such server")

    warnings: list[str] = []
    trackers = Trackers({"refusing": refuse}, warnings.append)
    for step in range(5):
        trackers.log("train", step, {"loss": 0.5})
    trackers.close("ended")
    assert warnings == [
        "refusing failed: OSError: no such server. Training continues without it",
        "5 points were not delivered to refusing; the run's own metrics contain them",
    ]


def test_a_hanging_tracker_does_not_block_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    release = threading.Event()

    def hang() -> RecordingTracker:
        release.wait()
        return RecordingTracker()

    warnings: list[str] = []
    trackers = Trackers({"hanging": hang}, warnings.append)
    trackers.log("train", 1, {"loss": 0.5})
    trackers.close("ended")  # without its timeout this would hang
    release.set()
    assert warnings == ["1 points were not delivered to hanging; the run's own metrics contain them"]


@pytest.mark.usefixtures("patient_trackers")
def test_a_server_that_is_down_is_a_warning(tmp_path: Path, make_tracked: Callable[..., Settings]) -> None:
    settings = make_tracked(mlflow_uri=f"http://127.0.0.1:{free_port()}")
    warnings: list[str] = []
    trackers = open_trackers(LocalRun(tmp_path), settings, warnings.append)
    assert trackers is not None
    trackers.log("train", 1, {"loss": 0.5})
    trackers.close("ended")
    assert warnings[0].startswith("MLflow failed: ")
    assert warnings[-1] == "1 points were not delivered to MLflow; the run's own metrics contain them"


def test_no_trackers_are_opened_by_default(tmp_path: Path, make_tracked: Callable[..., Settings]) -> None:
    assert open_trackers(LocalRun(tmp_path), make_tracked(), lambda message: None) is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages(TrackingSettings())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracking\.wandb_project is set, but the package wandb is not installed"):
        check_packages(TrackingSettings(wandb_project="spin"))
