"""The progress of a followed run: its own events where its storage can be read, else the pipeline's own tasks."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import json_format
from rich.console import Console

from spin_components.record.events import EventLog
from spin_components.store.open import open_run
from spin_pipeline.cluster.progress import RunProgress, failed_line, tasks_of
from spin_pipeline.config import load_settings
from spin_pipeline.dag import build
from spin_pipeline.deploy.pod_parameters import graphs
from support.kfp_server import recorded_tasks
from support.s3_server import BUCKET, S3Server

METRICS = {"loss": 0.5, "acc": 0.75}


def answer(uri: str, tasks: list[dict[str, Any]], error: str = "") -> Any:
    """KFP's answer about a run."""
    listed = [
        SimpleNamespace(**{"task_id": "", "state": None, "start_time": None, "error": None, **task}) for task in tasks
    ]
    return SimpleNamespace(
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        runtime_config=SimpleNamespace(parameters={"run_uri": uri}),
        run_details=SimpleNamespace(task_details=listed),
        error=SimpleNamespace(message=error) if error else None,
    )


def shown(*answers: Any) -> list[str]:
    """What is printed for these answers, without the times."""
    text = io.StringIO()
    progress = RunProgress(Console(file=text, width=200))
    for one in answers:
        progress.show(one)
    return [line[10:] for line in text.getvalue().splitlines()]


def test_the_runs_own_events_are_shown_in_the_words_of_watch(s3: S3Server, tmp_path: Path) -> None:
    uri = f"s3://{BUCKET}/{tmp_path.name}/run"
    log = EventLog(open_run(uri), {"step": "train-epoch", "iteration": 0, "epoch": 1})
    log.write("start", pid=1)
    log.write("done", facts={"num_steps": 3, "metrics": METRICS}, duration_s=2.0)
    log.close()
    lines = shown(answer(uri, recorded_tasks("run-succeeded")), answer(uri, recorded_tasks("run-succeeded")))
    assert lines == [f"{'iteration 0  train-epoch 1':<28}   2.0 s  3 steps, loss 0.5000, acc 0.75"]


def test_without_storage_the_pipelines_own_tasks_are_shown_once(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-another")
    killed = answer(f"s3://{BUCKET}/{tmp_path.name}/run", recorded_tasks("run-killed"))
    note, *lines = shown(killed, killed)
    assert "KFP's list of tasks is shown, without iterations and epochs" in note
    assert [tuple(line.split()) for line in lines] == [
        ("prepare", "succeeded"),
        ("validate-base", "succeeded"),
        ("generate", "failed"),
    ]
    assert failed_line(killed) == "failed: generate"
    assert failed_line(answer("", recorded_tasks("run-killed"), "child failed\n why")) == (
        "failed: generate: child failed why"
    )


@pytest.mark.parametrize("fuse", ["[]", "['ref-logprob', 'validate']"])
def test_every_step_of_a_compiled_pipeline_is_one_of_its_own_tasks(fuse: str) -> None:
    steps = ["evaluation.tasks=['arc_easy']", "warm_up.max_epochs=1", "control.sft=true", f"cluster.fuse={fuse}"]
    settings = load_settings("tiny", steps)
    ir = json_format.MessageToDict(build(settings, settings.cluster).pipeline_spec)
    keys = {
        key: "dag" not in ir["components"][task["componentRef"]["name"]]
        for graph in graphs(ir)
        for key, task in graph["dag"]["tasks"].items()
    }
    listed = answer("", [{"display_name": key} for key in keys])
    assert {task.display_name for task in tasks_of(listed)} == {key for key, is_step in keys.items() if is_step}
