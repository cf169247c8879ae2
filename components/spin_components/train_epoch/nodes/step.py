"""Train an epoch in several pods: create a TrainJob, show its log, and wait for its end."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from spin_components import errors
from spin_components.errors import BusyError, EngineError, SpinError
from spin_components.runtime.signals import Interrupted
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.train_epoch.inputs import epoch_inputs
from spin_components.train_epoch.nodes.cluster import Cluster
from spin_components.train_epoch.nodes.heartbeat import Watcher
from spin_components.train_epoch.nodes.log import NodeLog
from spin_components.train_epoch.nodes.pod import NodeJob
from spin_components.train_epoch.nodes.train_job import (
    DIGEST,
    JobTemplate,
    PodFragments,
    body_of,
    name_of,
    own_identity,
)
from spin_components.train_epoch.saves import delete_saves

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
    hardware: dict[str, Any] | None = None,
    *,
    pod: dict[str, Any],
    template: dict[str, Any],
    poll_s: float = _POLL_S,
) -> str:
    """Train one epoch in `hardware.nodes` pods.

    Args:
        run_uri, iteration, epoch, policy_uri, scores_uris, hardware: as for `step.train`.
        pod: this task's placement, see `PodFragments`.
        template: see `JobTemplate`.
        poll_s: seconds between requests for the job's state.

    Returns: the trained policy's URI, or empty when the attempt's time is up.

    Raises:
        ConfigError: the cluster has no TrainJobs, or does not allow this one.
        SpinError: what the failed pod raised; EngineError where it ended without an error.
    """
    key, after = layout.epoch_manifest(iteration, epoch), [policy_uri, *scores_uris]
    with Step.begin("train-epoch", run_uri, hardware, after=after, iteration=iteration, epoch=epoch) as step:
        if step.is_due(key, lambda: epoch_inputs(step, iteration, epoch, policy_uri, numerics=None)):
            identity = own_identity()
            cluster = Cluster(identity)
            job = NodeJob(
                run_uri=run_uri,
                attempt=step.attempt,
                iteration=iteration,
                epoch=epoch,
                policy_uri=policy_uri,
                inputs=step.inputs,
                hardware=step.hardware,
            )
            name = name_of(run_uri, iteration, epoch)
            body = body_of(
                name,
                identity,
                job.model_dump_json(),
                hardware=step.hardware,
                template=JobTemplate.model_validate(template),
                pod=PodFragments.model_validate(pod),
            )
            _start(cluster, body, poll_s)
            _await_end(cluster, step, name, Watcher(step.run, iteration, epoch), poll_s)
            if not step.run.exists(key):
                if not step.out_of_time():
                    raise EngineError(f"TrainJob {name} is complete, but the epoch's manifest is missing")
                step.stop()
        if not step.is_stopped:
            delete_saves(step.run, iteration, epoch)
        return step.returns(step.run.uri_of(f"{layout.epoch(iteration, epoch)}/policy"))


def _start(cluster: Cluster, body: dict[str, Any], poll_s: float) -> None:
    """Create the job; adopt an equal one that an earlier try left running, replace any other."""
    name, digest = body["metadata"]["name"], body["metadata"]["annotations"][DIGEST]
    deadline = time.monotonic() + _GONE_S
    while not cluster.create(body):
        there = cluster.read(name)
        if there is None:
            continue
        metadata = there["metadata"]
        is_going = "deletionTimestamp" in metadata
        if not is_going and metadata.get("annotations", {}).get(DIGEST) == digest and not _end_of(there):
            logger.info("TrainJob %s is running already; waiting for it", name)
            return
        if not is_going:
            logger.info("TrainJob %s was left by an earlier try; it is replaced", name)
            cluster.delete(name)
        if time.monotonic() > deadline:
            raise EngineError(f"TrainJob {name} still exists {_GONE_S:.0f} s after it was deleted; see what holds it")
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
            if end := _end_of(job):
                break
            log.tell()
            watcher.sign()
            if step.lease:
                step.lease.check()
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
    """How a job ended (`Complete` or `Failed`) and the message of that condition; None while it runs."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return condition["type"], str(condition.get("message", ""))
    return None


def _failure(cluster: Cluster, name: str, message: str) -> SpinError:
    """The error that the failed pod raised, or one with its exit code and last lines."""
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
