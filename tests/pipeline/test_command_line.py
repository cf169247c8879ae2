"""The command line in real processes, with KFP's local runner: signals, exit codes, resuming.

The driver of `tiny_run` is a new process; those of the others start in forks of a process that has imported torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest

from spin_components.store.local import LocalRun
from spin_pipeline.cli import main
from support.warm_spin import SPIN

pytestmark = pytest.mark.usefixtures("warm_driver")


def spin(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run([*SPIN, *arguments], capture_output=True, text=True, check=False)


def status_of(run: Path) -> dict[str, Any]:
    """The value of `status --json`."""
    with redirect_stdout(StringIO()) as printed:
        assert main(["status", str(run), "--json"]) == 0
    status: dict[str, Any] = json.loads(printed.getvalue())
    return status


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of every output of every step, except metrics."""
    manifests = [*run.glob("iterations/*/*/*.json"), *run.glob("iterations/*/checkpoint.json")]
    outputs = [json.loads(path.read_text("utf-8")).get("outputs", {}) for path in manifests]
    return {key: file["sha256"] for output in outputs for key, file in output.items() if "metrics" not in key}


@pytest.fixture(scope="module")
def small(tiny_llama: Path, question_file: Path) -> list[str]:
    """Settings of a run whose model and data are there already."""
    return [
        *("--set", f"model.base={tiny_llama}"),
        *("--set", f"data.train={question_file}"),
        *("--set", "data.validation_size=8"),
    ]


@pytest.fixture(scope="module")
def endless(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a run that generates until it is ended: two thousand answers, one at a time."""
    path = tmp_path_factory.mktemp("endless") / "questions.jsonl"
    rows = ({"prompt": f"What is {n} plus {n}?", "response": f"It is {2 * n}."} for n in range(2000))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "model.base": tiny_llama,
        "data.train": path,
        "data.max_train_records": 0,
        "generation.batch_size": 1,
        "generation.max_new_tokens": 127,
        "validation.num_samples": 0,  # they would be sampled one at a time as well
    }
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `tiny.toml` as a user starts it, without interruptions."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    command = [sys.executable, "-m", "spin_pipeline.cli", "run", "--config", "tiny", "--run-uri", str(run)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "best: iteration 1" in result.stdout
    return run


def test_the_tiny_run_improves_in_each_iteration_and_status_reports_it(tiny_run: Path) -> None:
    status = status_of(tiny_run)
    assert status["run_uri"] == str(tiny_run)
    assert status["state"] == "done"
    assert (status["iteration"], status["epoch"], status["step"]) == (1, 1, 24)
    first, second = status["iterations"]
    assert status["consumed_samples"] == 2 * (first["num_pairs"] + second["num_pairs"])
    assert second["val_loss"] < first["val_loss"] < status["base"]["val_loss"]
    assert [first["decision"], second["decision"]] == ["continue", "done"]
    assert status["best"] == {"iteration": 1, "uri": second["checkpoint_uri"], "val_loss": second["val_loss"]}
    assert first["num_pairs"] == first["num_by_origin"]["0"] == 32 - first["num_dropped"] > 28
    assert second["num_by_origin"] == {"1": 32 - second["num_dropped"], "0": second["num_history"]}
    assert second["num_pairs"] == sum(second["num_by_origin"].values()) > 32
    assert {"acc", "rewards_actual_mean", "rewards_generated_mean", "checkpoint_uri"} <= first.keys()


def test_repeating_the_command_does_nothing_and_succeeds(tiny_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.glob("iterations/**/*") if path.is_file()}
    result = spin("run", "--config", "tiny", "--run-uri", str(tiny_run))
    assert result.returncode == 0, result.stdout + result.stderr
    assert (
        result.stdout.count("done before") == 16
    )  # prepare, base, 2 x (generate, ref-logprob, 2 x (train, validate), checkpoint)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, "the run ended before it got there"
        time.sleep(0.02)


def _start(run: Path, *settings: str) -> subprocess.Popen[str]:
    command = [*SPIN, "run", "--config", "tiny", "--run-uri", str(run), *settings]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _processes_of(run: Path) -> list[psutil.Process]:
    """Processes with open files or arguments in the run's folder."""
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            names = [str(file.path) for file in process.open_files()] + (process.info["cmdline"] or [])
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(name.startswith(str(run)) for name in names):
            processes.append(process)
    return processes


def test_a_killed_run_resumes_and_ends_with_the_same_files(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    for key in ("iterations/0/generations/00000.json", "iterations/0/epochs/0/manifest.json", "iterations/1/epochs"):
        process = _start(run)
        _wait_for(run / key, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in run.glob("iterations/0/**/*.json")}
    result = spin("run", "--config", "tiny", "--run-uri", str(run))
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a finished step was run again"
    assert digests(run) == digests(tiny_run)
    assert not list(run.rglob("*.part"))


def _assert_a_signal_ends(process: subprocess.Popen[str], run: Path, number: signal.Signals) -> None:
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 3, output
    assert "the same command resumes" in output
    while _processes_of(run):  # they see that their runner is gone
        time.sleep(0.05)
    assert status_of(run)["state"] == "interrupted"


def test_sigint_stops_the_run_and_all_child_processes(tmp_path: Path, endless: list[str]) -> None:
    run = tmp_path / "stopped"
    process = _start(run, *endless)
    _wait_for(run / "base/validation.json", process)
    _assert_a_signal_ends(process, run, signal.SIGINT)


def test_a_second_runner_is_refused_and_sigterm_stops_the_first_with_all_child_processes(
    tmp_path: Path, endless: list[str]
) -> None:
    run = tmp_path / "busy"
    process = _start(run, *endless)
    try:
        _wait_for(run / "base/validation.json", process)
        result = spin("run", "--config", "tiny", "--run-uri", str(run))
        assert result.returncode == 2
        assert "another runner is at work" in result.stderr
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.communicate()
        raise
    _assert_a_signal_ends(process, run, signal.SIGTERM)


def test_a_time_limit_ends_with_code_3(tmp_path: Path, small: list[str]) -> None:
    result = spin("run", "--config", "tiny", "--run-uri", str(tmp_path / "run"), *small, "--set", "run.max_time=0.01")
    assert result.returncode == 3, result.stdout + result.stderr
    assert "stopped before the end; the same command resumes" in result.stdout
    assert status_of(tmp_path / "run")["state"] == "stopped"


def test_a_failed_step_ends_with_code_1_and_its_message(tmp_path: Path, small: list[str]) -> None:
    run = tmp_path / "run"
    settings = (*small, "--set", "training.lr=1e30", "--set", "training.gradient_clip_val=0")
    result = spin("run", "--config", "tiny", "--run-uri", str(run), *settings)
    assert result.returncode == 1
    assert "NonFiniteError" in result.stdout
    assert "Nothing was updated" in result.stdout
    status = status_of(run)
    assert status["state"] == "failed"
    assert status["failure"]["step"] == "train-epoch"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.train=nowhere.jsonl"], "nowhere.jsonl"),
        (["data.train=docker"], "contains no data file"),
        (["data.train=ftp://host/data.jsonl"], "scheme 'ftp' is not supported"),
        (["model.base=nowhere"], "does not exist"),
        (["model.base=builtin:gpt-5"], "no such builtin"),
        (["spin.max_iteration=3"], "did you mean 'max_iterations'?"),
        (["spin.max_iterations=many"], "spin.max_iterations = 'many'"),
        (["training.lr=-1"], "training.lr"),
        (["training.global_batch_size=7"], "multiple of"),
        (["hardware.nodes=2", "training.micro_batch_size=1"], "hardware.nodes = 2, but this is one machine"),
    ],
)
def test_a_wrong_setting_is_reported_at_once_with_code_2(
    settings: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [part for setting in settings for part in ("--set", setting)]
    assert main(["run", "--config", "tiny", "--run-uri", str(tmp_path / "run"), *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "events").exists(), "a step was started"


def test_all_mistakes_are_reported_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('[model]\nbase = 3\n[data]\ntrain = ""\n[spin]\nmax_epochs = 0\n[generation]\ntop_q = 1\n')
    assert main(["run", "--config", str(config)]) == 2
    printed = capsys.readouterr().err
    for place in ("data.train", "spin.max_epochs", "generation.top_q"):
        assert place in printed


def test_status_without_a_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "no run at" in capsys.readouterr().err


def test_compile_writes_ir_that_kfp_loads_without_torch(tmp_path: Path) -> None:
    output = tmp_path / "spin.yaml"
    code = (
        "import sys; from spin_pipeline.cli import main; "
        f"assert main(['compile', '--config', 'tiny', '-o', {str(output)!r}]) == 0; "
        "sys.exit(sorted({'torch', 'transformers', 'vllm', 'deepspeed'} & sys.modules.keys()) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    from kfp.components import load_component_from_file

    pipeline = load_component_from_file(str(output))
    assert pipeline.name == "spin"
    assert pipeline.component_spec.inputs["max_iterations"].default == 2
    assert LocalRun(tmp_path).list("", "*.yaml") == ["spin.yaml"]
