"""An epoch on several nodes: a TrainJob whose pods are real processes that train together through torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spin_components.errors import ConfigError, EngineError, IntegrityError
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.train_epoch.step import train, train_on_nodes
from support import bounds
from support.playing import begin, hardware, losses, play_scores
from support.small import small_settings
from support.trainer_server import TrainerServer

TWO_NODES = {"device": "cpu", "ranks": 1, "nodes": 2, "threads": 1}
TEMPLATE = {
    "image": "spin/train:1",
    "runtime": "torch-distributed",
    "shm_gib": 1,
    "run_as_user": 1000,
    "image_pull_secret": "",
    "timeout_s": 0,
}
STEP = """
import json, sys
from spin_components.runtime.process import step_of
from spin_components.train_epoch.step import train_on_nodes
with step_of("attempt-1"):
    print(train_on_nodes(**json.loads(sys.argv[1])))
"""


@dataclass
class Epoch:
    """The first epoch of a run, before training."""

    settings: Settings
    reference: str
    scores: list[str]

    @property
    def run(self) -> LocalRun:
        return LocalRun(Path(self.settings.run.uri))

    @property
    def arguments(self) -> dict[str, Any]:
        epoch = {"run_uri": self.settings.run.uri, "iteration": 0, "epoch": 0, "policy_uri": self.reference}
        return {**epoch, "scores_uris": self.scores}

    def train_here(self) -> str:
        return train(**self.arguments, hardware=hardware(self.settings))

    def train_on_nodes(self) -> str:
        return train_on_nodes(**self.arguments, hardware=TWO_NODES, pod={}, template=TEMPLATE, poll_s=0.2)

    def start_step(self) -> subprocess.Popen[bytes]:
        """The step in a separate process, as in a pod."""
        arguments = {**self.arguments, "hardware": TWO_NODES, "pod": {}, "template": TEMPLATE, "poll_s": 0.2}
        return subprocess.Popen([sys.executable, "-c", STEP, json.dumps(arguments)], stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, question_file: Path) -> Epoch:
    settings = small_settings(
        tmp_path_factory.mktemp("nodes") / "run",
        tiny_llama,
        question_file,
        data={"validation_size": 4, "max_train_records": 10},
        training={"global_batch_size": 4, "micro_batch_size": 2},
        hardware={"threads": 1},
    )
    reference = begin(settings)
    return Epoch(settings, reference, play_scores(settings, 0, reference))


@pytest.fixture
def epoch(prepared: Epoch) -> Epoch:
    run = prepared.run
    for key in (layout.epoch(0, 0), layout.LEASE, layout.LEASES):
        run.delete(key)
    attempt = run.read_json(layout.ATTEMPT)
    run.write_json(layout.ATTEMPT, {name: value for name, value in attempt.items() if name != "number"})
    return prepared


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainerServer]:
    with TrainerServer() as server:
        for name, value in server.variables().items():
            monkeypatch.setenv(name, value)
        yield server


def wait_for(what: Callable[[], object]) -> None:
    while not what():
        time.sleep(0.05)


@pytest.mark.usefixtures("warm_python")
def test_two_nodes_give_the_losses_of_one_process(
    epoch: Epoch, trainer: TrainerServer, tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    epoch.train_here()
    expected = losses(epoch.run)
    epoch.run.delete(layout.epoch(0, 0))
    answers = iter([(503, "overloaded"), (429, "slow down")])  # the request is retried
    trainer.refuse = lambda method, path: next(answers, None)
    assert epoch.train_on_nodes() == epoch.run.uri_of(f"{layout.epoch(0, 0)}/policy")
    assert losses(epoch.run) == pytest.approx(expected, abs=bounds.of_small_run(tiny_llama, num_steps=3))
    assert "step 2" in capfd.readouterr().err, "the first node's log is shown"
    assert (len(trainer.created), trainer.jobs) == (1, {}), "a job that is done is deleted"
    epoch.train_on_nodes()
    assert len(trainer.created) == 1, "an epoch that is done starts no job"


@pytest.mark.usefixtures("warm_python")
def test_a_retried_step_continues_with_its_job(epoch: Epoch, trainer: TrainerServer) -> None:
    trainer.stuck = "0/3 nodes are available: insufficient nvidia.com/gpu"  # so that the job is not done before it
    killed = epoch.start_step()
    wait_for(lambda: trainer.created)
    killed.kill()
    killed.wait()
    (job,) = trainer.jobs.values()
    job.body["metadata"]["ownerReferences"] = [{"kind": "Pod", "name": "of-the-killed-step", "uid": "0"}]
    step = epoch.start_step()
    wait_for(lambda: [owner["name"] for owner in job.body["metadata"]["ownerReferences"]] == ["step-1"])
    trainer.schedule()
    assert step.wait() == 0
    assert len(trainer.created) == 1
    assert epoch.run.exists(layout.epoch_manifest(0, 0))


def test_a_job_of_another_kind_is_replaced_and_a_step_that_is_terminated_deletes_its_own(
    epoch: Epoch, trainer: TrainerServer
) -> None:
    trainer.stuck = "0/3 nodes are available: insufficient nvidia.com/gpu"
    killed = epoch.start_step()
    wait_for(lambda: trainer.created)
    killed.kill()
    killed.wait()
    (job,) = trainer.jobs.values()
    job.body["metadata"]["annotations"].clear()
    step = epoch.start_step()
    wait_for(lambda: len(trainer.created) == 2 and trainer.looks > 2)
    step.terminate()
    assert step.wait() != 0
    assert (trainer.jobs, len(trainer.deleted)) == ({}, 2)


def test_a_job_is_replaced_after_its_pods_have_ended(epoch: Epoch, trainer: TrainerServer) -> None:
    killed = epoch.start_step()
    wait_for(lambda: trainer.created)
    killed.kill()
    killed.wait()
    (job,) = trainer.jobs.values()
    job.body["metadata"]["annotations"].clear()
    step = epoch.start_step()
    wait_for(lambda: len(trainer.created) == 2)
    step.terminate()
    step.wait()
    assert trainer.most_at_once == 2, "two jobs' pods never run side by side"


def fail_on_damaged_weights(epoch: Epoch) -> None:
    """Train on nodes, whose first pod finds that the reference was altered."""
    weights = Path(epoch.reference) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\0\0\1")
    try:
        with pytest.raises(IntegrityError, match=r"spin-[0-9a-f]{12}-0-0-node-0-\d: .*model\.safetensors"):
            epoch.train_on_nodes()
    finally:
        weights.write_bytes(whole)


def test_the_first_failed_container_is_read_before_the_runtime_restarts_it_away(
    epoch: Epoch, trainer: TrainerServer
) -> None:
    trainer.restarts = 6
    fail_on_damaged_weights(epoch)
    assert (trainer.jobs, len(trainer.deleted)) == ({}, 1), "the job of a failed pod is deleted"


def test_a_pod_that_fails_fails_the_step_with_its_own_error(epoch: Epoch, trainer: TrainerServer) -> None:
    fail_on_damaged_weights(epoch)


def test_a_pod_that_is_killed_is_named_with_its_last_lines(epoch: Epoch, trainer: TrainerServer) -> None:
    def kill_when_it_runs(method: str, path: str) -> None:
        for job in trainer.jobs.values():
            for pod in job.pods:
                if pod.process and pod.process.poll() is None:
                    os.killpg(pod.process.pid, signal.SIGKILL)

    trainer.refuse = kill_when_it_runs
    with pytest.raises(EngineError, match=r"pod spin-[0-9a-f]{12}-0-0-node-0-0 ended with code 9 \(OOMKilled\)"):
        epoch.train_on_nodes()


def test_a_job_without_a_running_step_ends(
    epoch: Epoch, trainer: TrainerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the step is killed while the second node sleeps and the first waits for it
    monkeypatch.setenv("SPIN_UNWATCHED_S", "2")
    step = epoch.start_step()
    wait_for(lambda: trainer.jobs and len(next(iter(trainer.jobs.values())).pods) == 2)
    (job,) = trainer.jobs.values()
    other = job.pods[1].process
    assert other is not None
    os.killpg(other.pid, signal.SIGSTOP)
    step.kill()
    step.wait()
    wait_for(lambda: job.pods[0].exit_code is not None)
    assert "has written no heartbeat" in job.pods[0].log.read_text("utf-8")


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (
            403,
            'trainjobs.trainer.kubeflow.org is forbidden: User "x" cannot create resource "trainjobs"',
            r"service account pipeline-runner may not create TrainJobs in namespace team; bind it",
        ),
        (
            403,
            'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: spec: Invalid value',
            r"refused in namespace team: 403 .*: admission webhook .* denied the request: spec: Invalid value",
        ),
        (404, "the server could not find the requested resource", r"has no TrainJob of .*; install Kubeflow Trainer"),
        (422, "spec.trainer: Invalid value", r"refused in namespace team: .*: spec.trainer: Invalid value"),
    ],
)
def test_a_refusal_by_the_cluster_is_a_one_line_error(
    epoch: Epoch, trainer: TrainerServer, status: int, message: str, expected: str
) -> None:
    trainer.refuse = lambda method, path: (status, message) if method == "POST" else None
    with pytest.raises(ConfigError, match=expected):
        epoch.train_on_nodes()


def test_outside_of_a_pod_it_is_refused(epoch: Epoch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPIN_SERVICE_ACCOUNT_FOLDER", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="has no service account token"):
        epoch.train_on_nodes()
