"""Every component as a pod runs it: the compiled command, KFP's executor, a process for each task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faults.ends import read_end
from spin_components.checkpoint.component import checkpoint
from spin_components.fused.component import generate_and_score, train_and_validate
from spin_components.generate.component import generate
from spin_components.prepare.component import prepare
from spin_components.ref_logprob.component import ref_logprob
from spin_components.result.component import result
from spin_components.settings.form import form_values
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.lease import RUNNER
from spin_components.store.local import LocalRun
from spin_components.train_epoch.component import train_epoch
from spin_components.validate.component import validate
from spin_pipeline.dag import shape_of
from spin_pipeline.deploy.compiled_spec import ENTRY
from support.kfp_component import executor_input

pytestmark = pytest.mark.usefixtures("warm_python")


def run_pod(component: Any, folder: Path, **parameters: Any) -> dict[str, Any]:
    """Run a component to its end; returns its outputs by name."""
    argument = executor_input(component, {"attempt": "a-run-of-kfp", **parameters}, folder)
    name = component.name.replace("-", "_")
    command = [sys.executable, *ENTRY[1:], "--executor_input", argument, "--function_to_execute", name]
    environment = {key: value for key, value in os.environ.items() if key not in (RUNNER, "_KFP_RUNTIME")}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    written: dict[str, Any] = json.loads((folder / "executor_output.json").read_text("utf-8"))
    assert written.get("artifacts", {}).keys() == {
        key for key, output in (component.component_spec.outputs or {}).items() if output.type.startswith("system.")
    }
    values: dict[str, Any] = written["parameterValues"]
    return values


def test_a_run_in_pods_makes_what_one_machine_makes(finished: LocalRun, tmp_path: Path) -> None:
    sections = finished.read_json(layout.RUN)["settings"]
    settings = Settings.model_validate({**sections, "run": {**sections["run"], "uri": str(tmp_path / "run")}})
    compiled = {**shape_of(settings).as_compiled(), "defaults": json.dumps(settings.model_dump(mode="json"))}
    outputs = (tmp_path / f"pod-{number}" for number in range(99))

    prepared = run_pod(prepare, next(outputs), created="", compiled=compiled, **form_values(settings))
    run = {"run_uri": prepared["run_uri"]}
    base = run_pod(
        validate, next(outputs), **run, iteration=-1, epoch=0, policy_uri=prepared["policy_uri"], reference_uri=""
    )
    at = {**run, "iteration": 0}
    reference = {"reference_uri": base["Output"]}
    answers = run_pod(generate, next(outputs), **at, shard=0, **reference)
    scores = run_pod(ref_logprob, next(outputs), **at, shard=0, **reference, generations_uri=answers["Output"])
    trained = run_pod(
        train_epoch, next(outputs), **at, epoch=0, policy_uri=base["Output"], scores_uris=[scores["Output"]]
    )
    validated = run_pod(validate, next(outputs), **at, epoch=0, policy_uri=trained["Output"], **reference)
    published = run_pod(checkpoint, next(outputs), **at, policy_uri=validated["Output"], **reference)
    shown = run_pod(result, next(outputs), **run, created="")
    assert shown["Output"].startswith("interrupted before the end")

    at, reference = {**run, "iteration": 1}, {"reference_uri": published["Output"]}
    scores = run_pod(generate_and_score, next(outputs), **at, shard=0, **reference)
    start = {"policy_uri": published["Output"], "scores_uris": [scores["Output"]]}
    validated = run_pod(train_and_validate, next(outputs), **at, epoch=0, **start, **reference)
    last = run_pod(checkpoint, next(outputs), **at, policy_uri=validated["Output"], **reference)
    shown = run_pod(result, next(outputs), **run, created="")

    assert published["Output"].endswith("iterations/0/epochs/0/policy")
    assert last["Output"] == ""
    assert shown["Output"].startswith("done after iteration 1")
    ours, theirs = read_end(LocalRun(tmp_path / "run")), read_end(finished)
    assert ours.keys == theirs.keys
    assert (ours.losses, ours.val_losses, ours.digests) == (theirs.losses, theirs.val_losses, theirs.digests)
