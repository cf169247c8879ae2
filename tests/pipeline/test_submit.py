"""`submit` and `follow` with a KFP API server whose runs are executed in this process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components import __version__
from spin_components.data.builtin import docstrings
from spin_components.errors import SpinError
from spin_components.settings.form import settings_from_form
from spin_components.settings.mistakes import parse_settings
from spin_components.settings.settings import Settings
from spin_components.store.open import open_run
from spin_pipeline.cli import main
from spin_pipeline.cluster.package import display_name_of
from support.kfp_server import KfpServer, Look, Trouble, as_kfp_gives, recorded_tasks
from support.playing import play_anywhere
from support.s3_server import BUCKET, SECRET_KEY, S3Server

SPIN = [sys.executable, "-m", "spin_pipeline.cli"]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """The printed text."""
    captured = capsys.readouterr()
    return captured.out + captured.err


def play(run: dict[str, Any]) -> None:
    """Execute a run's steps in this process, with the parameters that KFP received."""
    given = settings_from_form(
        as_kfp_gives(run["runtime_config"]["parameters"]), {name: {} for name in Settings.model_fields}
    )
    os.environ["SPIN_ATTEMPT"] = run["run_id"]
    try:
        play_anywhere(parse_settings(given, source="the run's parameters"))
    except SpinError:
        pass  # the run has recorded it
    finally:
        del os.environ["SPIN_ATTEMPT"]


@pytest.fixture
def data(s3: S3Server, tmp_path: Path) -> Callable[[int], str]:
    """Writes a number of records to storage, always at the same address."""

    def put(count: int) -> str:
        lines = [json.dumps({"prompt": question, "response": answer}) for question, answer in docstrings(limit=count)]
        path = s3.path(f"{tmp_path.name}/data.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return f"s3://{BUCKET}/{tmp_path.name}/data.jsonl"

    return put


@pytest.fixture
def command(data: Callable[[int], str], tiny_llama: Path, tmp_path: Path) -> list[str]:
    """A submission of a run of a few seconds, in a separate folder for each test."""
    settings = [
        f"data.train={data(24)}",
        "data.validation_size=6",
        "data.max_length=160",
        "data.max_prompt_length=96",
        f"model.base={tiny_llama}",
        "spin.max_iterations=1",
        "spin.max_epochs=1",
        "generation.max_new_tokens=8",
        "selection.max_length_ratio=0",  # answers are cut at 8 tokens
        "hardware.device=cpu",
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    return ["submit", "--config", "tiny", "--run-uri", f"s3://{BUCKET}/{tmp_path.name}/runs/{{time}}", *overrides]


def test_a_run_is_submitted_and_followed_and_its_exit_code_comes_from_storage(
    kfp: KfpServer, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kfp.on_create = play
    tasks = recorded_tasks("run-succeeded")
    kfp.looks = [Look("PENDING"), Look("RUNNING", tasks[:20]), Look("RUNNING", tasks), Look("SUCCEEDED", tasks)]
    assert main([*command, "--wait", "--service-account", "trainer"]) == 0
    output = printed(capsys)
    [run] = kfp.runs
    assert f"{kfp.endpoint}/#/runs/details/{run['run_id']}" in output
    lines = [line[10:] for line in output.splitlines() if line[2:3] == ":"]
    assert [line.split()[1] for line in lines if line.startswith("run ")] == ["pending", "running", "succeeded"]
    assert any(line.startswith("iteration 0  train-epoch 0") and "loss" in line for line in lines), output
    assert not [line for line in lines if re.search(r"executor|driver|\(0\)|for-loop", line)], "Argo's inner nodes"
    uri = run["runtime_config"]["parameters"]["run_uri"]
    assert f"done: {uri}" in output
    assert "{" not in uri
    assert run["service_account"] == "trainer"
    assert SECRET_KEY not in output + json.dumps(kfp.runs)
    assert main(["follow", run["run_id"]]) == 0


def test_equal_content_has_an_equal_version(
    kfp: KfpServer, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(command) == 0
    assert main([*command, "--set", "spin.max_epochs=2"]) == 0
    [pipeline] = kfp.stores["pipelines"].values()
    [experiment] = kfp.stores["experiments"].values()
    assert (pipeline["display_name"], experiment["display_name"]) == ("tiny", "tiny")
    assert kfp.count("POST", "upload_version") == 2
    used = [run["pipeline_version_reference"]["pipeline_version_id"] for run in kfp.runs]
    assert used[0] == used[1] != used[2]
    versions = kfp.versions[pipeline["pipeline_id"]].values()
    for version in versions:
        digest = version["name"].removeprefix(f"{__version__}-1-iteration-")
        assert re.fullmatch("[0-9a-f]{12}", digest)
        assert version["display_name"] == f"{__version__} 1 iteration {digest[:8]}"
        assert "To resume a run" in version["description"]
    assert printed(capsys).count(f"uploaded version {__version__} 1 iteration ") == 2


def test_a_version_is_found_on_a_server_that_shows_its_name_alone(kfp: KfpServer, command: list[str]) -> None:
    assert main(command) == 0
    [[version]] = [list(each.values()) for each in kfp.versions.values()]
    version["display_name"] = version["name"]
    assert main(command) == 0
    assert kfp.count("POST", "upload_version") == 1
    version["display_name"], version["name"] = display_name_of(version["name"]), "another-digest"
    assert main(command) == 0
    assert kfp.count("POST", "upload_version") == 2, "a name that begins alike"


def test_lost_responses_create_nothing_twice(kfp: KfpServer, command: list[str]) -> None:
    for path in ("/pipelines", "/upload_version", "/experiments", "/runs"):
        kfp.troubles += [Trouble("POST", path, after=True), Trouble("POST", path, status=503, after=True)]
    assert main(command) == 0
    assert [len(kfp.runs), len(kfp.stores["pipelines"]), len(kfp.stores["experiments"])] == [1, 1, 1]
    [versions] = kfp.versions.values()
    assert len(versions) == 1


def test_a_request_that_did_not_reach_kfp_is_repeated(kfp: KfpServer, command: list[str]) -> None:
    kfp.troubles = [Trouble("POST", "/runs", status=502, body=b"bad gateway", content_type="text/html", times=2)]
    assert main(command) == 0
    assert len(kfp.runs) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run-uri", "runs/here"], "run.uri = 'runs/here' is on this machine"),
        (["--run-uri", "/data/runs"], "storage: s3://bucket/prefix"),
        (["--continue-from", "/data/runs"], "--continue-from = '/data/runs' is on this machine"),
        (["--run-uri", "s3://a/b"], "is not a valid bucket name"),
        (["--set", "data.train=answers.jsonl"], "data.train = 'answers.jsonl' is a relative path"),
        (["--set", "model.base=ftp://host/x"], "scheme 'ftp' is not supported"),
        (["--set", "spin.max_epoch=1"], "did you mean 'max_epochs'?"),
        (["--continue-from", "gs://x/y"], "scheme 'gs' is not supported"),
    ],
)
def test_local_addresses_are_refused_before_any_request(
    kfp: KfpServer, command: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *arguments]) == 2
    assert message in printed(capsys)
    assert kfp.requests == []


def test_a_failure_is_one_line_with_the_step_and_its_reason_and_where_its_log_is(
    kfp: KfpServer, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kfp.on_create = play
    kfp.looks = [Look("FAILED", recorded_tasks("run-killed"))]
    assert main([*command, "--wait", "--set", "training.lr=1e30", "--set", "training.gradient_clip_val=0"]) == 1
    output = printed(capsys)
    assert "failed in train-epoch iteration 0 epoch 0: NonFiniteError" in output, "the failure that the run recorded"
    assert f"its log: {kfp.endpoint}/#/runs/details/{kfp.runs[0]['run_id']}" in output
    assert "failed: generate" not in output, "the task that KFP lists as failed; the run's own record says more"


def test_without_storage_the_pipelines_own_tasks_are_shown(
    kfp: KfpServer, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command) == 0
    kfp.looks = [Look("RUNNING", recorded_tasks("run-killed")[:30]), Look("FAILED", recorded_tasks("run-killed"))]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-another")
    capsys.readouterr()
    assert main(["follow", kfp.runs[0]["run_id"]]) == 1
    output = printed(capsys)
    assert "KFP's list of tasks is shown" in output
    lines = [line[10:].split() for line in output.splitlines() if line[2:3] == ":" and len(line.split()) == 3]
    assert {line[0] for line in lines} == {"run", "prepare", "validate-base", "generate"}
    assert "failed: generate" in output.splitlines()


def test_a_stopped_run_does_not_count_as_succeeded(
    kfp: KfpServer, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kfp.on_create = play
    assert main([*command, "--wait", "--set", "run.max_time=0.001"]) == 3
    assert "KFP reports SUCCEEDED, but the run is not finished: stopped" in printed(capsys)
    kfp.on_create = None
    assert main([*command, "--wait"]) == 0
    assert "the state is KFP's only" in printed(capsys), "storage has no run"


def test_a_run_cancelled_elsewhere_ends_with_code_3(
    kfp: KfpServer, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for looks in ([Look("RUNNING"), Look("CANCELING"), Look("FAILED")], [Look("CANCELED")]):
        kfp.looks = looks
        assert main([*command, "--wait"]) == 3
        assert "the run was told to end" in printed(capsys)


def test_waiting_stops_at_the_timeout_and_the_run_goes_on(
    kfp: KfpServer, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kfp.looks = [Look("RUNNING")]
    assert main([*command, "--wait", "--timeout", "0.1"]) == 3
    assert f"spin-pipeline follow {kfp.runs[0]['run_id']}" in printed(capsys)
    assert kfp.count("POST", ":terminate") == 0


def test_following_survives_connection_failures(
    kfp: KfpServer, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPIN_KFP_DEADLINE_S", "0.5")  # shorter than the outage, so that requests fail and are repeated
    kfp.looks = [Look("RUNNING"), Look("SUCCEEDED")]
    kfp.troubles = [Trouble("GET", "/runs/", status=503, times=4), Trouble("GET", "/runs/", times=12)]
    assert main([*command, "--wait"]) == 0
    assert "KFP is unreachable" in printed(capsys)


def test_a_missing_run_is_a_one_line_error(kfp: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["follow", "nowhere"]) == 2
    output = printed(capsys)
    assert "runs nowhere not found" in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "ended", "number"), [([], 0, signal.SIGINT), (["--cancel-on-interrupt"], 1, signal.SIGTERM)]
)
def test_a_signal_does_not_cancel_the_run_unless_asked_to(
    kfp: KfpServer, command: list[str], options: list[str], ended: int, number: signal.Signals
) -> None:
    kfp.looks = [Look("RUNNING")]
    process = subprocess.Popen(
        [*SPIN, *command, "--wait", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not kfp.runs or kfp.count("GET", kfp.runs[0]["run_id"]) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 3, output
    assert kfp.count("POST", ":terminate") == ended
    assert "Traceback" not in output
    assert (
        f"run {kfp.runs[0]['run_id']} was told to end"
        if ended
        else "the run goes on. Follow it with `spin-pipeline follow"
    ) in output


def test_retraining_starts_from_the_best_model_and_needs_new_data(
    kfp: KfpServer,
    command: list[str],
    data: Callable[[int], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = f"s3://{BUCKET}/{tmp_path.name}/runs"
    retrain = [*command, "--continue-from", folder, "--once-for-data", "--wait"]
    kfp.on_create = play
    assert main(retrain) == 0
    assert f"no finished run in {folder} yet" in printed(capsys)
    first = kfp.runs[0]["runtime_config"]["parameters"]
    assert main(retrain) == 4
    assert f"AlreadyTrainedError: {first['run_uri']} has trained on this data already" in printed(capsys)
    assert len(kfp.runs) == 1
    data(30)
    assert main(retrain) == 0
    second = kfp.runs[1]["runtime_config"]["parameters"]
    assert second["base_model"] == f"{first['run_uri']}/iterations/0/epochs/0/policy"
    assert json.loads(second["settings_model"])["forked_from"] == f"{first['run_uri']}, iteration 0"
    assert open_run(second["run_uri"]).read_json("run.json")["base_model"]["uri"] == second["base_model"]
    versions = {run["pipeline_version_reference"]["pipeline_version_id"] for run in kfp.runs}
    assert len(versions) == 1, "another base model does not change the pipeline"


def test_data_of_an_unfinished_run_is_refused(
    kfp: KfpServer, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--once-for-data"]) == 0
    assert main([*command, "--once-for-data"]) == 4
    assert "has this data already" in printed(capsys)
    kfp.runs[0]["state"] = "FAILED"
    assert main([*command, "--once-for-data"]) == 0, "a failed run has not trained on the data"
    kfp.runs[1]["state"] = "SUCCEEDED"
    assert main([*command, "--once-for-data"]) == 0, "nor has a run without storage"
