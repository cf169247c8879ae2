"""Each tracker with its real library, offline: metrics logged by several processes read back as one curve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components.settings.settings import Settings
from spin_components.store.base import RunStore
from spin_components.store.local import LocalRun
from spin_components.store.open import open_run
from spin_components.tracking.tracker import AttemptState
from spin_components.tracking.trackers import open_trackers
from support import wandb_files
from support.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.usefixtures("patient_trackers")
MakeTracked = Callable[..., Settings]
LOSSES = [0.7, 0.6, 0.5, 0.4, 0.3]


def log(run: RunStore, settings: Settings, steps: range, state: AttemptState = "running") -> None:
    """Log as one process: the losses of some steps, and val_loss after the last one."""
    warnings: list[str] = []
    trackers = open_trackers(run, settings, warnings.append)
    assert trackers is not None
    for step in steps:
        trackers.log("train", step, {"loss": LOSSES[step - 1], "lr": 1e-3})
    trackers.log("validation", steps[-1], {"val_loss": 2 * LOSSES[steps[-1] - 1]})
    trackers.close(state)
    assert warnings == []


def log_in_pieces(run: RunStore, settings: Settings) -> None:
    """Log three steps, then as if resumed from a save steps 2 to 4, then the last one."""
    log(run, settings, range(1, 4))
    log(run, settings, range(2, 5))
    log(run, settings, range(5, 6), "ended")


def tensorboard_curve(folder: Path, series: str, tag: str) -> list[tuple[int, float]]:
    """Read a curve as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / series))
    events.Reload()
    return [(scalar.step, round(scalar.value, 6)) for scalar in events.Scalars(tag)]


def test_tensorboard_shows_each_step_once(tmp_path: Path, make_tracked: MakeTracked) -> None:
    log_in_pieces(LocalRun(tmp_path), make_tracked(tensorboard=True))
    assert tensorboard_curve(tmp_path, "train", "loss") == list(enumerate(LOSSES, start=1))
    assert tensorboard_curve(tmp_path, "validation", "val_loss") == [(3, 1.0), (4, 0.8), (5, 0.6)]


def test_tensorboard_files_are_in_the_bucket_of_the_run(
    s3: S3Server, tmp_path: Path, make_tracked: MakeTracked
) -> None:
    with open_run(f"s3://{BUCKET}/tracked") as run:
        log_in_pieces(run, make_tracked(tensorboard=True))
    assert tensorboard_curve(s3.path("tracked"), "train", "loss") == list(enumerate(LOSSES, start=1))


def mlflow_client(settings: Settings) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(settings.tracking.mlflow_uri)


def test_mlflow_has_one_run_and_each_step_once(tmp_path: Path, make_tracked: MakeTracked) -> None:
    settings = make_tracked(mlflow_uri=f"file://{tmp_path}/mlflow", mlflow_experiment="games")
    run = LocalRun(tmp_path / "run")
    log_in_pieces(run, settings)
    client = mlflow_client(settings)
    (logged,) = client.search_runs([client.get_experiment_by_name("games").experiment_id])
    assert (logged.info.run_name, logged.info.status) == ("tiny", "FINISHED")
    assert logged.data.params["training.global_batch_size"] == "64"
    assert logged.data.tags["spin.run_uri"] == run.uri
    history = client.get_metric_history(logged.info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == list(enumerate(LOSSES, start=1))
    assert run.read_json("tracking/mlflow.json")["run_id"] == logged.info.run_id


def test_another_server_gets_its_own_run(tmp_path: Path, make_tracked: MakeTracked) -> None:
    run = LocalRun(tmp_path / "run")
    for name in ("one", "two"):
        settings = make_tracked(mlflow_uri=f"file://{tmp_path}/{name}")
        log(run, settings, range(1, 3), "failed")
        client = mlflow_client(settings)
        (logged,) = client.search_runs([client.get_experiment_by_name("spin").experiment_id])
        assert (logged.info.status, logged.data.metrics["loss"]) == ("FAILED", 0.6)


def test_wandb_offline_continues_one_run_with_each_step_once(tmp_path: Path, make_tracked: MakeTracked) -> None:
    run = LocalRun(tmp_path)
    log_in_pieces(run, make_tracked(wandb_project="games", wandb_mode="offline"))
    assert set(wandb_files.run_ids(tmp_path)) == {run.read_json("tracking/wandb.json")["id"]}
    rows = [row for row in wandb_files.history(tmp_path) if "loss" in row]
    assert [(row["global_step"], row["loss"]) for row in rows] == list(enumerate(LOSSES, start=1))
    checks = [row for row in wandb_files.history(tmp_path) if "val_loss" in row]
    assert [(row["global_step"], row["val_loss"]) for row in checks] == [(3, 1.0), (4, 0.8), (5, 0.6)]


def test_wandb_offline_files_are_in_the_bucket_of_the_run(
    s3: S3Server, tmp_path: Path, make_tracked: MakeTracked
) -> None:
    with open_run(f"s3://{BUCKET}/offline") as run:
        log(run, make_tracked(wandb_project="games", wandb_mode="offline"), range(1, 3))
    assert [row["loss"] for row in wandb_files.history(s3.path("offline/tracking")) if "loss" in row] == LOSSES[:2]


@pytest.mark.parametrize("uri", ["http://user:word@host", "https://host?token=abc", "host:5000", "ftp://host"])
def test_an_address_with_credentials_or_without_scheme_is_refused(uri: str, make_tracked: MakeTracked) -> None:
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_USERNAME|write http://"):
        make_tracked(mlflow_uri=uri)
