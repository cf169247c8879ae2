"""Runs in object storage through the command line: two machines, data from a bucket, and unusable storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from faults.proxy import Proxy
from spin_components.errors import BusyError
from spin_components.settings.settings import Settings
from spin_components.store.bucket import DEADLINE
from spin_components.store.layout import checkpoint
from spin_components.store.open import open_run
from spin_pipeline.cli import main
from spin_pipeline.local import run as local
from spin_pipeline.runs.status import is_at_work
from support.gate import Gate
from support.s3_server import BUCKET, SECRET_KEY, S3Server, free_port
from support.started import started
from support.warm_spin import SPIN

pytestmark = pytest.mark.usefixtures("warm_driver")

LOSE = """
import json, os, sys
from spin_components.store.lease_holder import LeaseHolder
from spin_components.store.open import open_run

os.environ["SPIN_RUNNER"] = sys.argv[1]  # a process that lives on holds the lease
LeaseHolder(open_run(json.load(sys.stdin)["run"]["uri"]), "winner", take_over=True).close()
sys.exit(1)
"""


def spin(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with additional environment variables."""
    variables = {**os.environ, **environment}
    return subprocess.run([*SPIN, *arguments], capture_output=True, text=True, env=variables, check=False)


def test_a_second_machine_is_refused_then_resumes_after_the_first_died(
    s3: S3Server, tmp_path: Path, tiny_llama: Path, question_file: Path
) -> None:
    uri = f"s3://{BUCKET}/{tmp_path.name}/run"
    settings = ["spin.max_iterations=1", f"model.base={tiny_llama}", f"data.train={question_file}"]
    settings += ["data.validation_size=8", "data.max_train_records=32"]
    command = [
        "run",
        "--config",
        "tiny",
        "--run-uri",
        uri,
        *(part for setting in settings for part in ("--set", setting)),
    ]
    elsewhere = {"SPIN_CACHE_DIR": str(tmp_path / "other-machine")}
    gate = Gate(r"HEAD .*/ref_logprobs/00000\.json")  # the first machine dies before it scores
    with closing(Proxy(s3.port)) as proxy:
        proxy.reset(gate.rule)
        variables = {**os.environ, "S3_ENDPOINT": proxy.endpoint, DEADLINE: "3600"}
        with started([*SPIN, *command], stdout=subprocess.DEVNULL, env=variables) as first:
            gate.wait(first)
            second = spin(*command, **elsewhere)
            assert second.returncode == 2, second.stdout
            assert f"another runner is at work on {uri}" in second.stderr
            assert json.loads(spin("status", uri, "--json").stdout)["state"] == "running"
            first.kill()
        gate.open()
    run = open_run(uri)
    while is_at_work(run):  # the steps of the first need a moment to notice that it is gone
        time.sleep(0.05)
    third = spin(*command, **elsewhere)
    assert third.returncode == 0, third.stdout + third.stderr
    assert "done before" in third.stdout
    status = json.loads(spin("status", uri, "--json").stdout)
    assert (status["state"], status["run_uri"], status["step"]) == ("done", uri, 8)
    assert status["best"]["uri"] == f"{uri}/iterations/0/epochs/1/policy"
    assert run.exists(checkpoint(0))


def test_the_loser_of_a_race_for_a_run_is_told_the_winner(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    # a driver that finds its run taken: `prepare` is refused, which ends it with 1
    monkeypatch.setattr(local, "DRIVER", (sys.executable, "-c", LOSE))
    with pytest.raises(BusyError, match=r"another runner is at work on .*: attempt winner"):
        local.run_local(make_settings(), Console())


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId: the access key is unknown to the server"),
        ({"AWS_SECRET_ACCESS_KEY": "guessed-wrong"}, "SignatureDoesNotMatch: the secret key is wrong"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "AWS_ACCESS_KEY_ID is set but AWS_SECRET_ACCESS_KEY is not"),
        ({"S3_ENDPOINT": f"http://127.0.0.1:{free_port()}"}, "check that the storage runs and S3_ENDPOINT is right"),
        ({"S3_ENDPOINT": "http://nowhere.invalid"}, "check that the storage runs and S3_ENDPOINT is right"),
        ({"S3_ENDPOINT": "http://user:word@host"}, "S3_ENDPOINT contains keys"),
        ({"S3_ENDPOINT": "127.0.0.1/path"}, "expected http://host:port"),
    ],
)
@pytest.mark.usefixtures("s3", "retry_clock")
def test_unusable_storage_is_a_one_line_error_with_code_2(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "--config", "tiny", "--run-uri", f"s3://{BUCKET}/x"]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert SECRET_KEY not in said.err + said.out
    assert "guessed-wrong" not in said.err + said.out


def test_a_missing_bucket_is_named(s3: S3Server) -> None:
    result = spin("run", "--config", "tiny", "--run-uri", "s3://no-such-bucket/x")
    assert result.returncode == 2
    assert "s3://no-such-bucket/x/" in result.stderr
    assert "NoSuchBucket: the bucket does not exist; create it, or correct its name" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_data_and_model_are_read_from_object_storage(
    s3: S3Server, tmp_path: Path, tiny_llama: Path, question_file: Path
) -> None:
    prefix = tmp_path.name
    lines = question_file.read_text("utf-8").splitlines()
    for number, part in enumerate((lines[:20], lines[20:])):
        path = s3.path(f"{prefix}/data/part-{number}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(part) + "\n", "utf-8")
    for file in tiny_llama.iterdir():
        path = s3.path(f"{prefix}/model/{file.name}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(file.read_bytes())
    settings = [
        f"data.train=s3://{BUCKET}/{prefix}/data",
        f"model.base=s3://{BUCKET}/{prefix}/model",
        "spin.max_iterations=1",
        "spin.max_epochs=1",
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = ["run", "--config", "tiny", "--run-uri", str(tmp_path / "run"), *overrides]
    result = spin(*command)
    assert result.returncode == 0, result.stdout + result.stderr
    record = open_run(str(tmp_path / "run")).read_json("run.json")
    assert list(record["data"]["train"]["files"]) == ["part-0.jsonl", "part-1.jsonl"]
    assert record["base_model"]["uri"] == f"s3://{BUCKET}/{prefix}/model"
    s3.path(f"{prefix}/data/part-1.jsonl").write_text('{"prompt": "Hi"}\n')
    result = spin(*command)
    assert result.returncode == 2
    assert f"s3://{BUCKET}/{prefix}/data/part-1.jsonl, line 1" in result.stderr
