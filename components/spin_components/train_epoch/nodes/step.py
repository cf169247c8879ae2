"""Train an epoch on several machines: a TrainJob is started, its log shown, its end awaited; it is this step's end."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from spin_components import errors
from spin_components.errors import BusyError, EngineError, SpinError
from spin_components.execution import Step
from spin_components.signals import Interrupted, interruptible
from spin_components.store import layout
from spin_components.train_epoch.nodes.cluster import Cluster
from spin_components.train_epoch.nodes.identity import own_identity
from spin_components.train_epoch.nodes.log import NodeLog
from spin_components.train_epoch.nodes.node import NodeJob
from spin_components.train_epoch.nodes.train_job import DIGEST, JobTemplate, PodFragments, body_of, name_of
from spin_components.train_epoch.nodes.watch import Watcher
from spin_components.train_epoch.step import train_with

logger = logging.getLogger(__name__)

_POLL_S = 5.0
_GONE_S = 300.0
_LAST_LINES = 20


def train_on_nodes(
    run_uri: str,
    iteration: int,
    epoch: int,
    policy_uri: str,
    scores_uris: list[str],
    hardware: dict[str, Any],
    pod: dict[str, Any],
    template: dict[str, Any],
    poll_s: float = _POLL_S,
) -> str:
    """Train one epoch in `hardware.nodes` pods.

    Args:
        run_uri, iteration, epoch, policy_uri, scores_uris, hardware: as for `step.train`.
        pod: this task's placement, see `PodFragments`.
        template: see `JobTemplate`.
        poll_s: seconds between looks at the job.

    Returns: the trained policy's URI, or empty when the attempt's time is up.

    Raises:
        ConfigError: the cluster cannot, or may not, run a TrainJob.
        SpinError: what the pod that failed raised; EngineError where it died without a word.
    """

    def work(current: Step, inputs: dict[str, Any]) -> bool:
        identity = own_identity()
        cluster = Cluster(identity)
        job = NodeJob(
            run_uri=run_uri,
            attempt=current.lease.owner if current.lease else "",
            iteration=iteration,
            epoch=epoch,
            policy_uri=policy_uri,
            inputs=inputs,
            hardware=current.hardware,
        )
        body = body_of(
            name_of(run_uri, iteration, epoch),
            identity,
            job.model_dump_json(),
            hardware=current.hardware,
            template=JobTemplate.model_validate(template),
            pod=PodFragments.model_validate(pod),
        )
        _start(cluster, body, poll_s)
        _await_end(cluster, current, body["metadata"]["name"], Watcher(current.run, iteration, epoch), poll_s)
        if current.run.exists(layout.epoch_manifest(iteration, epoch)):
            return True
        if current.out_of_time():
            return False
        raise EngineError(f"{body['metadata']['name']} says it is complete, but the epoch's manifest is not there")

    return train_with(work, run_uri, iteration, epoch, policy_uri, scores_uris, hardware, how=None)


def _start(cluster: Cluster, body: dict[str, Any], poll_s: float) -> None:
    """Create the job; adopt one that an earlier try left at work, replace one that has ended or says otherwise."""
    name, digest = body["metadata"]["name"], body["metadata"]["annotations"][DIGEST]
    deadline = time.monotonic() + _GONE_S
    while not cluster.create(body):
        found = cluster.read(name)
        if found is None:
            continue
        metadata = found["metadata"]
        is_going = "deletionTimestamp" in metadata
        if not is_going and metadata.get("annotations", {}).get(DIGEST) == digest and not _end_of(found):
            logger.info("TrainJob %s is at work already; going on with it", name)
            return
        if not is_going:
            logger.info("TrainJob %s was left by an earlier try; it is replaced", name)
            cluster.delete(name)
        if time.monotonic() > deadline:
            raise EngineError(f"TrainJob {name} does not go away after it was deleted; look what holds it")
        time.sleep(poll_s)
    logger.info("TrainJob %s is created: %d nodes", name, body["spec"]["trainer"]["numNodes"])


def _await_end(cluster: Cluster, current: Step, name: str, watcher: Watcher, poll_s: float) -> None:
    """Wait for the job; where this step is ended, or has lost the run, the job is deleted first."""
    log = NodeLog(cluster, name)
    try:
        with interruptible():
            while True:
                found = cluster.read(name)
                if found is None:
                    raise EngineError(f"TrainJob {name} was deleted by somebody; run the step again")
                if end := _end_of(found):
                    break
                log.tell()
                watcher.sign()
                if current.lease:
                    current.lease.claim()
                time.sleep(poll_s)
    except (BusyError, Interrupted):
        logger.info("TrainJob %s is deleted", name)
        cluster.delete(name)
        raise
    finally:
        log.close()
    kind, message = end
    if kind == "Failed":
        raise _failure(cluster, name, message)
    cluster.delete(name)


def _end_of(job: dict[str, Any]) -> tuple[str, str] | None:
    """How a job has ended, and why: `Complete` or `Failed`."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return condition["type"], str(condition.get("message", ""))
    return None


def _failure(cluster: Cluster, name: str, message: str) -> SpinError:
    """What the pod that failed raised, or all that is known of how it died."""
    for pod in cluster.pods(name):
        pod_name = pod["metadata"]["name"]
        for status in pod.get("status", {}).get("containerStatuses") or []:
            ended = status.get("state", {}).get("terminated") or status.get("lastState", {}).get("terminated")
            if not ended or ended["exitCode"] == 0:
                continue
            lines = cluster.last_lines(pod_name, _LAST_LINES)
            if lines and (known := re.fullmatch(r"(\w+Error): (.*)", lines[-1])):
                kind = getattr(errors, known[1], None)
                if isinstance(kind, type) and issubclass(kind, SpinError):
                    return kind(f"{pod_name}: {known[2]}")
            end = "\n".join(f"  {line}" for line in lines)
            return EngineError(
                f"TrainJob {name}: pod {pod_name} ended with code {ended['exitCode']} ({ended.get('reason')}); "
                f"its last lines:\n{end}"
            )
    return EngineError(f"TrainJob {name} failed: {message or 'no pod of it says why'}")
