"""TrainJobs on a server that acts as Trainer 2.3 did: what it refuses, how jobs are replaced, adopted and fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from spin_components.errors import ConfigError, NonFiniteError
from spin_components.settings.attempt import HardwareSettings
from spin_components.training.nodes import following, train_job
from spin_components.training.nodes.cluster import Cluster
from spin_components.training.nodes.train_job import DIGEST, JobTemplate, PodFragments, body_of, own_identity
from support.trainer_server import JOBS, TrainerServer

TEMPLATE = JobTemplate(
    image="spin/train:1",
    runtime="spin-train-epoch",
    shm_gib=1,
    run_as_user=1000,
    image_pull_secret="",
    timeout_s=0,
)
SLEEP = "import time; time.sleep(600)"
SLOW_TO_END = "import signal, time; signal.signal(15, lambda *_: (time.sleep(0.3), exit(0))); time.sleep(600)"
FAIL = "import os, sys\nif os.environ['PET_NODE_RANK'] == '1':\n  sys.exit('NonFiniteError: the loss is nan')\n"


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainerServer]:
    with TrainerServer() as server:
        for name, value in server.variables().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def cluster(trainer: TrainerServer) -> Cluster:
    return Cluster(own_identity())


def job(program: str, argument: str = "{}") -> dict[str, Any]:
    """A job of two pods that run a program in place of training."""
    hardware = HardwareSettings(ranks=1, nodes=2)
    body = body_of("spin-x-0-0", own_identity(), argument, hardware=hardware, template=TEMPLATE, pod=PodFragments())
    body["spec"]["trainer"]["command"] = ["python3", "-c", program]
    return body


def failure_of(cluster: Cluster) -> Any:
    """The failure of the job's pods, once there is one."""
    while not (failure := following._failure(cluster, "spin-x-0-0", cluster.pods("spin-x-0-0"))):
        pass
    return failure


def test_a_manager_without_a_domain_is_refused_in_the_servers_words(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_job, "MANAGER", "spin-pipelines")
    with pytest.raises(ConfigError, match=r"refused in namespace team: 403 .* must be a domain-prefixed path"):
        cluster.create(job(SLEEP))


def test_missing_rights_are_named_where_the_server_says_so(cluster: Cluster, trainer: TrainerServer) -> None:
    forbidden = 'trainjobs.trainer.kubeflow.org is forbidden: User "x" cannot create resource "trainjobs" in API group'
    trainer.refuse = lambda method, path: (403, forbidden) if method == "POST" else None
    with pytest.raises(ConfigError, match="service account pipeline-runner may not create TrainJobs"):
        cluster.create(job(SLEEP))


def test_a_long_argument_is_taken(cluster: Cluster) -> None:
    assert cluster.create(job(SLEEP, "x" * 150_000))


def test_a_job_is_replaced_once_the_pods_of_the_one_before_have_ended(cluster: Cluster, trainer: TrainerServer) -> None:
    following._start(cluster, job(SLOW_TO_END), 0.02)
    following._start(cluster, job(SLEEP, '{"other": 1}'), 0.02)
    assert (len(trainer.created), len(trainer.deleted)) == (2, 1)
    assert trainer.most_at_once == 2, "the pods of two jobs never run side by side"


def test_a_job_deleted_in_the_foreground_starts_its_pods_anew(cluster: Cluster, trainer: TrainerServer) -> None:
    # why the step deletes in the background
    cluster.create(job(SLOW_TO_END))
    cluster._api.delete(f"{JOBS}/spin-x-0-0", propagationPolicy="Foreground")
    again = trainer.jobs["spin-x-0-0"]
    assert "deletionTimestamp" in again.body["metadata"]
    assert [pod.exit_code for pod in again.pods] == [None, None]
    assert all(pod.is_leaving for _, pod in trainer.leaving)


def test_an_equal_job_is_adopted_with_this_pod_as_its_owner(cluster: Cluster, trainer: TrainerServer) -> None:
    body = job(SLEEP)
    body["metadata"]["ownerReferences"][0] |= {"name": "step-0", "uid": "0-0-0"}
    cluster.create(body)
    following._start(cluster, job(SLEEP), 0.02)
    assert len(trainer.created) == 1
    (owner,) = trainer.jobs["spin-x-0-0"].body["metadata"]["ownerReferences"]
    assert (owner["name"], owner["uid"]) == ("step-1", "1-2-3")
    assert trainer.jobs["spin-x-0-0"].body["metadata"]["annotations"][DIGEST] == body["metadata"]["annotations"][DIGEST]


@pytest.mark.parametrize("restarts", [0, 6])
def test_the_first_pod_that_failed_gives_the_reason_also_where_it_was_restarted(
    cluster: Cluster, trainer: TrainerServer, restarts: int
) -> None:
    trainer.restarts = restarts
    cluster.create(job(FAIL))
    failure = failure_of(cluster)
    assert isinstance(failure, NonFiniteError)
    assert str(failure) == "spin-x-0-0-node-0-1: the loss is nan"


def test_pods_that_were_told_to_end_have_not_failed(cluster: Cluster, trainer: TrainerServer) -> None:
    cluster.create(job(SLEEP))
    cluster.delete("spin-x-0-0")
    assert following._failure(cluster, "spin-x-0-0", cluster.pods("spin-x-0-0")) is None
