"""Runs components one after another as KFP does, in forks of one process that has imported torch.

`_KFP_RUNTIME=true python -m support.kfp_player` takes a list of tasks as JSON from standard input: of each its `name`,
its `source`, its `function`, its `input` for KFP's executor, and `links`: parameters that are what a task before
returned, each as `[task, output]`. It writes what each returned to standard output, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from kfp.dsl.executor_main import executor_main

from spin_components.runtime.process import ending, exit_code_of, fork


def play(task: dict[str, Any], returned: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Run a task; returns its outputs by name."""
    given = json.loads(task["input"])
    for parameter, (name, output) in task["links"].items():
        given["inputs"]["parameterValues"][parameter] = returned[name][output]
    if (child := fork()) == 0:
        with ending(), tempfile.TemporaryDirectory() as folder:
            module = Path(folder, "ephemeral_component.py")
            module.write_text(task["source"], encoding="utf-8")
            sys.argv = ["executor_main", "--component_module_path", str(module), "--executor_input", json.dumps(given)]
            sys.argv += ["--function_to_execute", task["function"]]
            os.dup2(2, 1)
            executor_main()
    if code := exit_code_of(child):
        raise SystemExit(f"{task['name']} ended with {code}")
    values: dict[str, Any] = json.loads(Path(given["outputs"]["outputFile"]).read_text("utf-8"))["parameterValues"]
    return values


if __name__ == "__main__":
    import torch  # once for all forks

    del torch
    returned: dict[str, dict[str, Any]] = {}
    for task in json.load(sys.stdin):
        returned[task["name"]] = play(task, returned)
    json.dump(returned, sys.stdout)
