"""The process that KFP starts for a task on a cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spin_components.generate.component import generate
from spin_components.prepare.component import prepare
from spin_components.result.component import result
from spin_components.runtime.process import explain_end
from spin_components.runtime.task import MODULES
from spin_components.settings.form import form_values
from spin_components.store.lease import RUNNER
from spin_pipeline.config import load_settings
from spin_pipeline.dag import shape_of
from spin_pipeline.deploy.compiled_spec import ENTRY
from support.kfp_component import executor_input


def run_task(component: Any, parameters: dict[str, Any], folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Run a component by the command of a compiled pipeline, without what one machine sets."""
    environment = {key: value for key, value in os.environ.items() if key not in (RUNNER, "_KFP_RUNTIME")}
    command = [sys.executable, *ENTRY[1:], "--executor_input", executor_input(component, parameters, folder)]
    return subprocess.run(
        [*command, "--function_to_execute", name], capture_output=True, text=True, check=False, env=environment
    )


def test_a_task_runs_the_function_of_the_image(tmp_path: Path) -> None:
    given = {"attempt": "id", "created": "", "run_uri": str(tmp_path / "no-run")}
    ended = run_task(result, given, tmp_path / "outputs", "result")
    assert ended.returncode == 0, ended.stderr
    written = json.loads((tmp_path / "outputs" / "executor_output.json").read_text("utf-8"))
    assert written["parameterValues"] == {"Output": "nothing: the run has not begun; see the log of prepare"}


def test_the_last_line_of_a_failed_task_is_its_reason(tmp_path: Path) -> None:
    given = {"attempt": "id", "run_uri": "ftp://somewhere", "iteration": 0, "shard": 0, "reference_uri": "x"}
    ended = run_task(generate, given, tmp_path / "outputs", "generate")
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("generate failed: ConfigError: ")
    assert "scheme 'ftp' is not supported" in last


@pytest.mark.parametrize(
    ("mistakes", "reason"),
    [
        (
            {"beta": "x", "settings_training": "lr: 1"},
            r"2 mistakes in the pipeline's parameters: beta = 'x': expected a number.*; settings_training is no JSON",
        ),
        ({"settings_training": '{"lrr": 1}'}, r"training\.lrr: unknown key; did you mean 'lr'\?"),
        ({"max_iterations": 9}, r"spin\.max_iterations = 9, but this pipeline was compiled for at most 2"),
    ],
)
def test_a_mistake_in_the_form_is_the_last_line_of_prepare(
    tmp_path: Path, mistakes: dict[str, Any], reason: str
) -> None:
    settings = load_settings("tiny", run_uri=str(tmp_path / "run"))
    compiled = {**shape_of(settings).as_compiled(), "defaults": settings.model_dump_json(exclude={"cluster"})}
    given = {"attempt": "id", "created": "", "compiled": compiled, **form_values(settings), **mistakes}
    ended = run_task(prepare, given, tmp_path / "outputs", "prepare")
    assert ended.returncode == 2
    assert re.match(f"prepare failed: ConfigError: .*{reason}", ended.stderr.splitlines()[-1])
    assert not (tmp_path / "run").exists()


def test_a_function_that_the_image_lacks_is_named(tmp_path: Path) -> None:
    ended = run_task(result, {}, tmp_path, "distill")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert (
        "this image has no component 'distill', only checkpoint, control, control_on_nodes"
        in ended.stderr.splitlines()[-1]
    )


def test_modules_of_components_are_there_and_have_their_functions() -> None:
    for name, module in MODULES.items():
        assert hasattr(__import__(module, fromlist=[name]), name)


def test_a_reason_of_several_lines_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explain_end("prepare", "2 mistakes in x:\n  a: unknown key\n  b = 1: too small\n")
    assert capsys.readouterr().err == "prepare failed: 2 mistakes in x: a: unknown key; b = 1: too small\n"


def test_kubernetes_is_left_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from spin_components.runtime import process

    kept = tmp_path / "termination-log"
    monkeypatch.setattr(process, "TERMINATION_LOG", kept)
    explain_end("generate", "it broke")
    assert not kept.exists()  # not in a pod
    kept.touch()
    explain_end("generate", "it broke")
    assert kept.read_text("utf-8") == "generate failed: it broke"
    assert capsys.readouterr().err.count("generate failed: it broke\n") == 2
