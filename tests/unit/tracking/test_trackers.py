from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from s3_server import free_port
from spin_components.attempt_settings import TrackingSettings
from spin_components.errors import ConfigError
from spin_components.lora.packages import check_packages
from spin_components.settings import Settings
from spin_components.store.local import LocalRun
from spin_components.tracking import trackers as module
from spin_components.tracking.trackers import Outcome, Point, Trackers, open_trackers


class Kept:
    """A tracker that keeps what it gets, and fails as often as it is told to."""

    def __init__(self, fails: int = 0) -> None:
        self.points: list[Point] = []
        self.outcome: Outcome | None = None
        self._fails = fails

    def log(self, points: Collection[Point]) -> None:
        if points and self._fails:
            self._fails -= 1
            raise ConnectionError("nobody listens\nat all")
        self.points += points

    def flush(self) -> None:
        pass

    def close(self, outcome: Outcome) -> None:
        self.outcome = outcome


def test_points_arrive_in_their_order_and_the_outcome_last() -> None:
    kept, warnings = Kept(), list[str]()
    trackers = Trackers({"kept": lambda: kept}, warnings.append)
    for step in range(100):
        trackers.log("train", step, {"loss": step / 2})
    trackers.flush()
    assert [(point.step, point.values["loss"]) for point in kept.points] == [(step, step / 2) for step in range(100)]
    trackers.close("ended")
    assert kept.outcome == "ended"
    assert warnings == []


def test_a_tracker_that_fails_warns_once_and_gets_all_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    kept, other, warnings = Kept(fails=2), Kept(), list[str]()
    trackers = Trackers({"kept": lambda: kept, "other": lambda: other}, warnings.append)
    for step in range(3):
        trackers.log("train", step, {"loss": 0.5})
        trackers.flush()
    trackers.close("running")
    assert [point.step for point in kept.points] == [0, 1, 2]
    assert [point.step for point in other.points] == [0, 1, 2]
    assert warnings == ["kept takes no metrics: ConnectionError: nobody listens. Training goes on without it"]


def test_a_tracker_that_cannot_be_opened_loses_points_and_says_how_many() -> None:
    def refuse() -> Kept:
        raise OSError("no such server")

    warnings: list[str] = []
    trackers = Trackers({"refusing": refuse}, warnings.append)
    for step in range(5):
        trackers.log("train", step, {"loss": 0.5})
    trackers.close("ended")
    assert warnings == [
        "refusing takes no metrics: OSError: no such server. Training goes on without it",
        "refusing did not get 5 points; the run's own metrics have them",
    ]


def test_a_tracker_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.2)
    release = threading.Event()

    def hang() -> Kept:
        release.wait()
        return Kept()

    warnings: list[str] = []
    trackers = Trackers({"hanging": hang}, warnings.append)
    trackers.log("train", 1, {"loss": 0.5})
    trackers.close("ended")  # would wait for ever, and the test for its time limit
    release.set()
    assert warnings == ["hanging did not get 1 points; the run's own metrics have them"]


@pytest.mark.usefixtures("patient_trackers")
def test_a_server_that_is_down_is_a_warning(tmp_path: Path, make_tracked: Callable[..., Settings]) -> None:
    settings = make_tracked(mlflow_uri=f"http://127.0.0.1:{free_port()}")
    warnings: list[str] = []
    trackers = open_trackers(LocalRun(tmp_path), settings, warnings.append)
    assert trackers is not None
    trackers.log("train", 1, {"loss": 0.5})
    trackers.close("ended")
    assert warnings[0].startswith("MLflow takes no metrics: ")
    assert warnings[-1] == "MLflow did not get 1 points; the run's own metrics have them"


def test_nothing_is_opened_where_nothing_is_wanted(tmp_path: Path, make_tracked: Callable[..., Settings]) -> None:
    assert open_trackers(LocalRun(tmp_path), make_tracked(), lambda message: None) is None


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages(TrackingSettings())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracking\.wandb_project is set, but the package wandb is not installed"):
        check_packages(TrackingSettings(wandb_project="spin"))
