"""Every component run by KFP's executor, with the variable set under which KFP's client cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spin_components.checkpoint.component import checkpoint
from spin_components.evaluate.component import evaluate
from spin_components.generate.component import generate
from spin_components.prepare.component import prepare
from spin_components.ref_logprob.component import ref_logprob
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.train_epoch.component import train_epoch, train_epoch_on_nodes
from spin_components.validate.component import validate
from spin_pipeline.config import pipeline_parameters
from spin_pipeline.runs.status import read_status
from support.kfp_component import executor_input

COMPILED = {"max_iterations": 1, "max_epochs": [1], "shards": 1, "nodes": 1, "evaluates": True}


def test_a_run_played_component_by_component_is_done(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings(
        data={"max_train_records": 8, "validation_size": 4}, generation={"max_new_tokens": 4}, hardware={"threads": 1}
    )
    uri, machine = settings.run.uri, settings.hardware.model_dump(mode="json")
    tasks: list[dict[str, Any]] = []

    def add(component: Any, name: str, links: dict[str, tuple[str, str]], **parameters: Any) -> None:
        container = component.component_spec.implementation.container
        given = {"attempt": "attempt-1", "run_uri": uri, **parameters}
        tasks.append(
            {
                "name": name,
                "source": container.command[-1],
                "function": container.args[-1],
                "input": executor_input(component, given, tmp_path / name),
                "links": links,
            }
        )

    at = {"iteration": 0, "hardware": machine}
    base = ("base", "Output")
    parameters = {name: value for name, value in pipeline_parameters(settings).items() if name != "run_uri"}
    add(prepare, "prepare", {}, compiled=COMPILED, **parameters)
    of_base = {"iteration": layout.BASE, "epoch": 0, "hardware": machine, "reference_uri": ""}
    add(validate, "base", {"policy_uri": ("prepare", "policy_uri")}, **of_base)
    add(generate, "generate", {"reference_uri": base}, shard=0, **at)
    scored = {"reference_uri": base, "generations_uri": ("generate", "Output")}
    add(ref_logprob, "ref-logprob", scored, shard=0, **at)
    scores = [f"{uri}/iterations/0/ref_logprobs/00000.parquet"]
    add(train_epoch, "train-epoch", {"policy_uri": base}, epoch=0, scores_uris=scores, **at)
    several = {"template": {}, "pod": {}, "epoch": 0, "scores_uris": scores}
    add(train_epoch_on_nodes, "train-epoch-on-nodes", {"policy_uri": base}, **several, **at)
    links = {"policy_uri": ("train-epoch", "Output"), "reference_uri": base}
    add(validate, "validate", links, epoch=0, **at)
    links = {"policy_uri": ("validate", "Output"), "reference_uri": base}
    selection = settings.selection.model_dump(mode="json")
    add(checkpoint, "checkpoint", links, iteration=0, max_iterations=1, selection=selection)
    add(evaluate, "evaluate", {"after": ("checkpoint", "Output")}, **at)

    player = subprocess.run(
        [sys.executable, "-m", "support.kfp_player"],
        input=json.dumps(tasks),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "_KFP_RUNTIME": "true"},
    )
    assert player.returncode == 0, player.stderr[-4000:]
    returned = json.loads(player.stdout)
    assert returned["train-epoch"] == returned["train-epoch-on-nodes"], "an epoch that is done starts no job"
    assert returned["checkpoint"]["Output"] == ""
    assert read_status(uri).state == "done"
    metadata = json.loads((tmp_path / "checkpoint" / "executor_output.json").read_text())["artifacts"]
    assert metadata["model"]["artifacts"][0]["metadata"]["iteration"] == 0
