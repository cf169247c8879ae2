"""Evaluation through the command line: KFP's runner, a real harness, a judge that is unreachable at first."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.judge_server import KEY, Answer, JudgeServer
from support.task_folder import write_tasks
from support.warm_spin import SPIN

ROWS = [{"question": f"Question {n}", "choices": ["yes", "no"], "gold": n % 2} for n in range(4)]


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer(lambda asked: f"Fine.\nScore: {1 + len(asked) % 10}", key=KEY)
    yield server
    server.close()


def spin(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPIN_JUDGE_API_KEY": KEY}
    return subprocess.run([*SPIN, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.usefixtures("warm_driver")
def test_training_completes_without_the_judge_and_the_same_command_evaluates_later(
    tmp_path: Path, judge: JudgeServer, tiny_llama: Path, question_file: Path
) -> None:
    tasks = write_tasks(tmp_path / "tasks", ROWS, [])
    settings: dict[str, Any] = {
        "model.base": tiny_llama,
        "data.train": question_file,
        "data.max_train_records": 16,
        "data.validation_size": 4,
        "spin.max_iterations": 1,
        "spin.max_epochs": 1,
        "generation.max_new_tokens": 8,
        "validation.num_samples": 2,
        "evaluation.tasks": '["my_choice"]',
        "evaluation.task_files": tasks,
        "evaluation.judge_url": judge.url,
        "evaluation.judge_model": "judge",
        "cluster.retries": 0,
    }
    run = tmp_path / "run"
    command = ["run", "--config", "tiny", "--run-uri", str(run)]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    judge.every = Answer(503, b'{"error": {"message": "no GPU left"}}', {"retry-after-ms": "5"})
    result = spin(*command)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "training is complete; the same command runs the evaluations that are missing" in result.stdout
    assert "failed after all retries: " in result.stdout
    assert "no GPU left" in result.stdout
    for name in ("evaluate base", "iteration 0  evaluate"):
        assert any(name in line and "failed: EngineError" in line for line in result.stdout.splitlines()), result.stdout
    status = json.loads(spin("status", str(run), "--json").stdout)
    assert (status["state"], status["failure"]["step"]) == ("failed", "evaluate")
    assert [row["decision"] for row in status["iterations"]] == ["done"], "training is complete"

    judge.every = None
    result = spin(*command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (
        result.stdout.count("done before") == 2 + 5
    )  # prepare, base, generate, ref-logprob, train, validate, checkpoint
    status = json.loads(spin("status", str(run), "--json").stdout)
    assert status["state"] == "done"
    for model in (status["base"], *status["iterations"]):
        assert model["evaluation"]["tasks"]["results"]["my_choice"]["num_documents"] == 4
        assert model["evaluation"]["judge"]["num_scored"] == 2
    assert "judge" in spin("status", str(run)).stdout
    for path in (path for path in run.rglob("*") if path.is_file()):
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in result.stdout + result.stderr


@pytest.mark.usefixtures("warm_driver")
def test_a_run_that_the_judge_decides_stops_without_it_and_goes_on_with_the_same_command(
    tmp_path: Path, judge: JudgeServer, tiny_llama: Path, question_file: Path
) -> None:
    settings: dict[str, Any] = {
        "model.base": tiny_llama,
        "data.train": question_file,
        "data.max_train_records": 16,
        "data.validation_size": 8,
        "spin.max_iterations": 2,
        "spin.max_epochs": 1,
        "generation.max_new_tokens": 8,
        "validation.num_samples": 8,
        "evaluation.judge_url": judge.url,
        "evaluation.judge_model": "judge",
        "selection.measure": "judge",
        "selection.on_regression": "continue",
        "selection.max_length_ratio": 0,
        "cluster.retries": 0,
    }
    run = tmp_path / "run"
    command = ["run", "--config", "tiny", "--run-uri", str(run)]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    judge.every = Answer(503, b'{"error": {"message": "no GPU left"}}', {"retry-after-ms": "5"})
    result = spin(*command)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "selection.measure = 'judge' decides, and the base model cannot be compared without it" in result.stdout
    assert "training is complete" not in result.stdout
    status = json.loads(spin("status", str(run), "--json").stdout)
    assert (status["state"], status["iterations"]) == ("failed", [])

    judge.every = None
    result = spin(*command)
    assert result.returncode == 0, result.stdout + result.stderr
    status = json.loads(spin("status", str(run), "--json").stdout)
    assert (status["state"], len(status["iterations"])) == ("done", 2)
    for row in status["iterations"]:
        assert row["measure"] == "judge"
        assert row["answer_changes"]["judge"]["num_answers"] == 8
        assert row["reason"].startswith("judge score ")
    assert len(judge.requests) >= 3 * 8
    assert "judge score" in spin("status", str(run)).stdout
