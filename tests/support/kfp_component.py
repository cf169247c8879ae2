"""Runs a component as KFP's launcher does: its own command, with `_KFP_RUNTIME` set and an executor input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def executor_input(component: Any, parameters: dict[str, Any], folder: Path) -> str:
    """The argument of KFP's executor, as JSON.

    Args:
        component: a Python component.
        parameters: values by name.
        folder: of all outputs; what the executor returns is in its `executor_output.json`.
    """
    outputs = component.component_spec.outputs or {}
    artifacts = {
        name: {"artifacts": [{"name": name, "type": {"schemaTitle": output.type.split("@")[0]}, "metadata": {}}]}
        for name, output in outputs.items()
        if output.type.startswith("system.")
    }
    for name, artifact in artifacts.items():
        artifact["artifacts"][0]["uri"] = str(folder / name)
    returned = {name: {"outputFile": str(folder / "returned" / name)} for name in outputs if name not in artifacts}
    return json.dumps(
        {
            "inputs": {"parameterValues": parameters},
            "outputs": {
                "parameters": returned,
                "artifacts": artifacts,
                "outputFile": str(folder / "executor_output.json"),
            },
        }
    )


def run_component(
    component: Any, parameters: dict[str, Any], folder: Path
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run a component to its end; returns its process and what it returned, by name."""
    container = component.component_spec.implementation.container
    argument = executor_input(component, parameters, folder)
    arguments = [argument if part == "{{$}}" else part for part in map(str, container.args)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # of an image: its own python3
    ended = subprocess.run(
        [*container.command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, "_KFP_RUNTIME": "true"},
    )
    written = folder / "executor_output.json"
    values = json.loads(written.read_text("utf-8"))["parameterValues"] if written.exists() else {}
    return ended, values
