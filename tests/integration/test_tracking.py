"""Trackers in a whole run with real steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spin_components.record.events import read_events
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.train_epoch.step import train
from spin_components.validate.step import validate
from support import wandb_files
from support.bounds import unit_roundoff
from support.playing import begin, hardware, play, play_scores
from unit.tracking.test_places import mlflow_client, tensorboard_curve

WRITTEN = 0.5e-6 + 8 * unit_roundoff(torch.float32)
"""What six decimals and float32 leave of a number below 8."""
MakeSettings = Callable[..., Settings]


def rows(run: LocalRun, folder: str = "iterations/0") -> list[dict[str, Any]]:
    """Metrics of every training step of an iteration, as stored in the run."""
    keys = sorted(run.list(folder, "epochs/*/metrics.json"))
    return [row for key in keys for row in json.loads(run.read(key) or b"")["steps"]]


def all_trackers(folder: Path) -> dict[str, Any]:
    """`[tracking]` with every tracker, offline, in a folder."""
    mlflow = {"mlflow_uri": f"file://{folder}/mlflow"}
    return {"tensorboard": True, **mlflow, "wandb_project": "spin", "wandb_mode": "offline"}


@pytest.mark.usefixtures("patient_trackers")
def test_every_tracker_has_the_runs_metrics_even_after_an_epoch_is_repeated(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(tracking=all_trackers(tmp_path), spin={"max_epochs": 2}, generation={"max_new_tokens": 4})
    uri, machine = settings.run.uri, hardware(settings)
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    policy = validate(uri, 0, 0, train(uri, 0, 0, reference, scores, machine), machine, reference)
    train(uri, 0, 1, policy, scores, machine)
    LocalRun(Path(uri)).delete(
        layout.epoch_manifest(0, 1)
    )  # as if killed before the save: trackers are ahead of the run
    run = play(settings)
    expected = [(row["step"], round(row["loss"], 6)) for row in rows(run)]
    assert len(expected) == 6  # 20 pairs in batches of 8, twice
    base = run.read_json(layout.BASE_VALIDATION)["facts"]["val_loss"]
    last = run.read_json(layout.validation(0, 1))["facts"]["val_loss"]

    curve = tensorboard_curve(tmp_path / "run", "train", "loss")  # of float32
    assert [step for step, _ in curve] == [step for step, _ in expected]
    assert [loss for _, loss in curve] == pytest.approx([row["loss"] for row in rows(run)], abs=WRITTEN)
    checks = tensorboard_curve(tmp_path / "run", "validation", "val_loss")
    assert [step for step, _ in checks] == [0, 3, 6]
    assert (checks[0][1], checks[-1][1]) == pytest.approx((base, last), abs=WRITTEN)
    assert tensorboard_curve(tmp_path / "run", "iteration", "num_pairs") == [(6, 20.0)]

    client = mlflow_client(settings)
    (tracked,) = client.search_runs([client.get_experiment_by_name("spin").experiment_id])
    history = client.get_metric_history(tracked.info.run_id, "loss")
    assert sorted((metric.step, round(metric.value, 6)) for metric in history) == expected
    assert sorted(metric.step for metric in client.get_metric_history(tracked.info.run_id, "val_loss")) == [0, 3, 6]

    logged = wandb_files.history(tmp_path / "run")
    assert [(row["global_step"], round(row["loss"], 6)) for row in logged if "loss" in row] == expected
    assert len({*wandb_files.run_ids(tmp_path / "run")}) == 1
    assert [event for event in read_events(run) if event["kind"] == "warning" and "metrics" in event["message"]] == []


@pytest.mark.usefixtures("patient_trackers")
def test_warm_up_and_control_have_runs_of_their_own_at_every_tracker(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(
        tracking=all_trackers(tmp_path),
        warm_up={"max_epochs": 2, "lr": 3e-3},
        control={"sft": True},
        generation={"max_new_tokens": 4},
        validation={"num_samples": 0},
    )
    run = play(settings)
    client = mlflow_client(settings)
    tracked = client.search_runs([client.get_experiment_by_name("spin").experiment_id])
    by_name = {each.info.run_name: each for each in tracked}
    name, logged = settings.run.name, wandb_files.history(tmp_path / "run")
    assert set(by_name) == {name, f"{name} warm-up", f"{name} control"}
    assert len({*wandb_files.run_ids(tmp_path / "run")}) == 3
    for branch, number, steps in (
        ("warm-up", layout.WARM_UP, [1, 2, 3, 4, 5, 6]),
        ("control", layout.control(0), [1, 2, 3]),
    ):
        trained = rows(run, layout.iteration(number))
        expected = [(row["step"], round(row["loss"], 6)) for row in trained]
        assert [step for step, _ in expected] == steps
        curve = tensorboard_curve(tmp_path / "run", f"{branch}/train", "loss")
        assert [step for step, _ in curve] == steps
        assert [loss for _, loss in curve] == pytest.approx([row["loss"] for row in trained], abs=WRITTEN)
        its = by_name[f"{name} {branch}"]
        history = client.get_metric_history(its.info.run_id, "loss")
        assert sorted((metric.step, round(metric.value, 6)) for metric in history) == expected
        assert (its.info.status, its.data.tags["spin.branch"]) == ("FINISHED", branch)
        assert {step for step, _ in tensorboard_curve(tmp_path / "run", f"{branch}/validation", "val_loss")} <= {*steps}
        sent = [(row["global_step"], round(row["loss"], 6)) for row in logged if "loss" in row]
        assert [each for each in sent if each in expected] == expected
    assert [step for step, _ in tensorboard_curve(tmp_path / "run", "train", "loss")] == [1, 2, 3]


def test_trackers_are_not_inputs_of_steps(make_settings: MakeSettings) -> None:
    settings = {"spin": {"max_iterations": 1}, "generation": {"max_new_tokens": 4}}
    run = play(make_settings(**settings))
    before = len(read_events(run))
    play(make_settings(**settings, tracking={"tensorboard": True}))
    kinds = {event["kind"] for event in read_events(run)[before:]}
    assert kinds == {"start", "plan", "reuse", "published"}
    assert "tracking" not in json.dumps([run.read_json(key)["inputs"] for key in run.list("data", "manifest.json")])
