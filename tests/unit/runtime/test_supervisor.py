"""A step's work in a child: begun again where a repeat may mend its failure, told to end with its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spin_components.errors import (
    ConfigError,
    DataError,
    EngineError,
    IntegrityError,
    NonFiniteError,
    StepZeroError,
    StorageError,
)
from spin_components.record.events import read_events, read_repeats
from spin_components.report.warnings import find_warnings
from spin_components.runtime.supervisor import is_passing
from spin_components.store import layout
from spin_components.store.lease import read_lease
from spin_components.store.local import LocalRun
from support.started import started

SUPERVISOR = """
import json, sys
from spin_components.runtime.supervisor import run_step
order = json.loads(sys.argv[1])
returned = run_step("attempt-1", "support.failing_step:step", is_optional=order.pop("is_optional", False), **order)
print(json.dumps(returned))
"""


def command(folder: Path, *hows: str, **more: Any) -> list[str]:
    """A supervised step that ends in these ways, one a try; the last one stays."""
    return [
        sys.executable,
        "-c",
        SUPERVISOR,
        json.dumps({"run_uri": str(folder), "hows": hows, "iteration": 0, **more}),
    ]


def environment(retries: int = 2) -> dict[str, str]:
    """Variables of a supervisor without pauses, which finds the step."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "SPIN_RETRIES": str(retries), "SPIN_RETRY_S": "0.01"}


def run(folder: Path, *hows: str, retries: int = 2, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    order = command(folder, *hows, **more)
    return subprocess.run(order, capture_output=True, text=True, timeout=100, check=False, env=environment(retries))


def kinds(folder: Path) -> list[str]:
    return [event["kind"] for event in read_events(LocalRun(folder))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose lease the attempt holds."""
    run = LocalRun(tmp_path / "run")
    run.write_json(layout.ATTEMPT, {"deadline": None, "started": 0.0})
    return tmp_path / "run"


def test_a_step_returns_what_it_returns_and_its_parent_imports_none_of_it(folder: Path) -> None:
    ended = run(folder, "done")
    assert (ended.returncode, json.loads(ended.stdout)) == (0, "done by attempt-1")
    assert kinds(folder) == ["start"]


@pytest.mark.parametrize(
    "how", ["killed", "EngineError: vLLM died", "RuntimeError: NCCL error: unhandled system error"]
)
def test_what_a_repeat_may_mend_is_begun_again(folder: Path, how: str) -> None:
    ended = run(folder, how, how, "done")
    assert (ended.returncode, json.loads(ended.stdout)) == (0, "done by attempt-1"), ended.stderr
    reason = "was ended by SIGKILL (out of memory?)" if how == "killed" else how
    messages = [f"failing-step was begun again, repeat {number} of 2: {reason}" for number in (1, 2)]
    assert [event["message"] for event in read_repeats(LocalRun(folder))] == messages
    assert all(message in ended.stderr for message in messages)
    assert kinds(folder).count("start") == 3


@pytest.mark.parametrize(
    "how", ["ConfigError: no such key", "NonFiniteError: the loss is nan", "ValueError: no number", "exit 2"]
)
def test_what_a_repeat_would_fail_with_again_is_final(folder: Path, how: str) -> None:
    ended = run(folder, how)
    assert ended.returncode == (2 if how[:1] in "Ce" else 1)
    assert kinds(folder).count("start") == 1
    assert read_repeats(LocalRun(folder)) == []


def test_past_the_retries_a_killed_step_is_recorded_as_failed_and_gives_the_lease_back(folder: Path) -> None:
    ended = run(folder, "killed", retries=1)
    assert ended.returncode == 1
    last = read_events(LocalRun(folder))[-1]
    message = "the step's process was ended by SIGKILL (out of memory?), 2 times; its last save is kept"
    assert (last["kind"], last["error"], last["message"], last["iteration"]) == ("fail", "EngineError", message, 0)
    lease = read_lease(LocalRun(folder))
    assert lease is not None
    assert lease.duration_s == 0
    assert f"EngineError: {message}" in ended.stderr


def test_an_optional_step_that_fails_fails_alone(folder: Path) -> None:
    for how in ("killed", "EngineError: no GPU left", "ValueError: no number"):
        ended = run(folder, how, retries=0, is_optional=True)
        assert (ended.returncode, json.loads(ended.stdout)) == (0, ""), ended.stderr
        assert "the run goes on without it" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_ends_the_step_cleanly_without_a_repeat(folder: Path, number: signal.Signals) -> None:
    with started(command(folder, "waits"), stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        assert process.stdout.read() == "ended cleanly\n"
    assert process.returncode == 128 + number
    assert kinds(folder).count("start") == 1


def test_the_kernel_would_rather_kill_the_work_and_what_it_left_is_ended(folder: Path) -> None:
    ended = run(folder, "leaves a process", "scores")
    returned = json.loads(json.loads(ended.stdout))
    assert returned["child"] > returned["parent"]
    left = int((folder / "left").read_text())
    state = Path(f"/proc/{left}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_which_errors_may_pass() -> None:
    passing = (StorageError, EngineError)
    final = (ConfigError, DataError, IntegrityError, NonFiniteError, StepZeroError)
    assert all(is_passing(kind("x")) for kind in passing)
    assert not any(is_passing(kind("CUDA")) for kind in final)
    assert is_passing(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_passing(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_the_report_lists_repeats(finished: LocalRun) -> None:
    from spin_components.record.history import read_history

    event = {"kind": "warning", "step": "generate", "iteration": 1, "shard": 0, "message": "generate was begun again"}
    assert find_warnings(read_history(finished), [], [event])[-1] == (
        "generate was begun again (iteration 1, shard 0)."
    )
