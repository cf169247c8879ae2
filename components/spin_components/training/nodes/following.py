"""Trains an epoch in several pods: creates a TrainJob, shows its log, and waits for its end."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from typing import Any

from spin_components import errors
from spin_components.errors import BusyError, EngineError, SpinError
from spin_components.runtime.signals import Interrupted
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.training.nodes.cluster import Cluster
from spin_components.training.nodes.heartbeat import Watcher
from spin_components.training.nodes.log import NodeLog
from spin_components.training.nodes.pod import NodeJob
from spin_components.training.nodes.train_job import (
    DIGEST,
    JobTemplate,
    PodFragments,
    body_of,
    name_of,
    own_identity,
)

logger = logging.getLogger(__name__)

_GONE_S = 300.0
_LAST_LINES = 20


class _PodError(Exception):
    """A pod of the job failed; `reason` is the step's error."""

    def __init__(self, reason: SpinError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Pods:
    """How the pods of a training step are made.

    Attributes:
        pod: the task's placement, see `PodFragments`.
        template: see `JobTemplate`.
        poll_s: seconds between requests for the job's state.
    """

    pod: dict[str, Any]
    template: dict[str, Any]
    poll_s: float = 5.0


def train_in_pods(step: Step, iteration: int, epoch: int, policy_uri: str, pods: Pods) -> None:
    """Train an epoch that is due in `hardware.nodes` pods; the step is stopped where the time ran out first.

    Raises:
        ConfigError: the cluster has no TrainJobs, or does not allow this one.
        SpinError: what the failed pod raised; EngineError where it ended without an error.
    """
    identity = own_identity()
    cluster = Cluster(identity)
    job = NodeJob(
        run_uri=step.run.uri,
        attempt=step.attempt,
        iteration=iteration,
        epoch=epoch,
        policy_uri=policy_uri,
        inputs=step.inputs,
        hardware=step.hardware,
        step=step.name,
    )
    name = name_of(step.run.uri, iteration, epoch)
    body = body_of(
        name,
        identity,
        job.model_dump_json(),
        hardware=step.hardware,
        template=JobTemplate.model_validate(pods.template),
        pod=PodFragments.model_validate(pods.pod),
        placement=step.placement,
    )
    _start(cluster, body, pods.poll_s)
    _await_end(cluster, step, name, Watcher(step.run, iteration, epoch), pods.poll_s)
    if not step.run.exists(layout.epoch_manifest(iteration, epoch)):
        if not step.out_of_time():
            raise EngineError(f"TrainJob {name} is complete, but the epoch's manifest is missing")
        step.stop()


def _start(cluster: Cluster, body: dict[str, Any], poll_s: float) -> None:
    """Create the job; adopt an equal one that an earlier try left running, replace any other.

    Pods outlive their job for a while. A new one begins after they have ended, since both would train.
    """
    name, digest = body["metadata"]["name"], body["metadata"]["annotations"][DIGEST]
    deadline = time.monotonic() + _GONE_S
    while True:
        job = cluster.read(name)
        if job is None:
            left = cluster.pods(name)
            if not left and cluster.create(body):
                break
        elif "deletionTimestamp" not in job["metadata"]:
            if job["metadata"].get("annotations", {}).get(DIGEST) == digest and not _end_of(job):
                logger.info("TrainJob %s is running already; waiting for it", name)
                cluster.adopt(name)
                return
            logger.info("TrainJob %s was left by an earlier try; it is replaced", name)
            cluster.delete(name)
        if time.monotonic() > deadline:
            raise EngineError(
                f"TrainJob {name} or its pods still exist {_GONE_S:.0f} s after it was deleted; see what holds them"
            )
        time.sleep(poll_s)
    logger.info("TrainJob %s is created: %d nodes", name, body["spec"]["trainer"]["numNodes"])


def _await_end(cluster: Cluster, step: Step, name: str, watcher: Watcher, poll_s: float) -> None:
    """Wait for the job; delete it if this step is terminated, or has lost the run."""
    log = NodeLog(cluster, name)
    try:
        while True:
            job = cluster.read(name)
            if job is None:
                raise EngineError(f"TrainJob {name} was deleted by somebody; run the step again")
            pods = cluster.pods(name)
            if failure := _failure(cluster, name, pods):  # before the runtime restarts it, and its log is lost
                raise _PodError(failure)
            if end := _end_of(job):
                break
            log.tell(pods)
            watcher.sign()
            if step.lease:
                step.lease.check()
            time.sleep(poll_s)
    except (BusyError, Interrupted, _PodError) as error:
        logger.info("TrainJob %s is deleted", name)
        cluster.delete(name)
        if isinstance(error, _PodError):
            raise error.reason from None
        raise
    finally:
        log.close()
    kind, message = end
    cluster.delete(name)
    if kind == "Failed":
        raise EngineError(f"TrainJob {name} failed: {message or 'no pod of it says why'}")


def _end_of(job: dict[str, Any]) -> tuple[str, str] | None:
    """How a job ended (`Complete` or `Failed`) and the message of that condition; None while it runs."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return condition["type"], str(condition.get("message", ""))
    return None


def _failure(cluster: Cluster, name: str, pods: list[dict[str, Any]]) -> SpinError | None:
    """The error that the first failed pod raised, or one with its exit code and last lines; None where none failed."""
    failed = [
        (str(ended.get("finishedAt", "")), pod, ended, is_previous)
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]  # others were told to end
        for ended, is_previous in _endings(pod)
    ]
    if not failed:
        return None
    _, pod, ended, is_previous = min(failed, key=lambda one: one[0])
    pod_name = pod["metadata"]["name"]
    lines = cluster.last_lines(pod_name, _LAST_LINES, is_previous=is_previous)
    if lines and (known := re.fullmatch(r"(\w+Error): (.*)", lines[-1])):
        kind = getattr(errors, known[1], None)
        if isinstance(kind, type) and issubclass(kind, SpinError):
            return kind(f"{pod_name}: {known[2]}")
    end = "\n".join(f"  {line}" for line in lines)
    return EngineError(
        f"TrainJob {name}: pod {pod_name} ended with code {ended['exitCode']} ({ended.get('reason')}); "
        f"its last lines:\n{end}"
    )


def _endings(pod: dict[str, Any]) -> list[tuple[dict[str, Any], bool]]:
    """How a pod's containers failed, and whether they were restarted since."""
    endings = []
    for status in pod.get("status", {}).get("containerStatuses") or []:
        for state, is_previous in (("lastState", True), ("state", False)):
            ended = (status.get(state) or {}).get("terminated")
            if ended and ended["exitCode"] != 0:
                endings.append((ended, is_previous))
                break
    return endings
