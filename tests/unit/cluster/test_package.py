"""The version of a pipeline depends on its content, not on the process that compiled it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

_CODE = """
import json, tempfile
from pathlib import Path
from google.protobuf import json_format
from spin_pipeline.cluster.package import compile_package
from spin_pipeline.cluster.submit import pipeline_of
from spin_pipeline.config import load_settings
pipeline = pipeline_of(load_settings("tiny"))
name = compile_package(pipeline, Path(tempfile.mkdtemp(), "spin.yaml"))
specs = (pipeline.pipeline_spec, pipeline.platform_spec)
print(json.dumps([name, *map(json_format.MessageToDict, specs)]))
"""


@pytest.fixture(scope="module")
def compiled() -> list[Any]:
    """Version, IR and platform document, compiled by processes with different hash seeds."""
    versions = []
    for seed in "01":  # KFP's compiler swapped executors of the same name with seed 0, not with seed 1
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _CODE], capture_output=True, text=True, env=environment, check=True
        )
        versions.append(json.loads(result.stdout.splitlines()[-1]))
    return versions


def test_every_process_computes_the_same_version(compiled: list[Any]) -> None:
    assert len({name for name, _, _ in compiled}) == 1
    assert all(entry == compiled[0] for entry in compiled)


def test_a_pods_configuration_only_uses_inputs_of_its_pipeline(compiled: list[Any]) -> None:
    for _, ir, platform in compiled:
        configs = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        dags = [ir["root"], *(component for component in ir["components"].values() if "dag" in component)]
        checked = 0
        for component in dags:
            inputs = component.get("inputDefinitions", {}).get("parameters", {})
            for task in component["dag"]["tasks"].values():
                label = ir["components"][task["componentRef"]["name"]].get("executorLabel", "")
                selector = configs.get(label, {}).get("nodeSelector", {}).get("nodeSelectorJson", {})
                if name := selector.get("componentInputParameter"):
                    assert name in inputs, f"{label} is given {name}, which its pipeline does not have"
                    checked += 1
                elif output := selector.get("taskOutputParameter"):
                    assert output["producerTask"] in component["dag"]["tasks"]
                    checked += 1
        assert checked >= 6
