"""Show the log of a TrainJob's first pod as it is written, and why its pods do not start."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

from spin_components.errors import ClusterError
from spin_components.training.nodes.cluster import Cluster

logger = logging.getLogger(__name__)

_INDEX = "batch.kubernetes.io/job-completion-index"
_ENDED = ("Succeeded", "Failed")


class NodeLog:
    """Follows a job's pods; its own failures are logged, never raised.

    Args:
        cluster: that the job runs on.
        job: name of the TrainJob.
    """

    def __init__(self, cluster: Cluster, job: str) -> None:
        self._cluster, self._job = cluster, job
        self._threads: dict[str, threading.Thread] = {}
        self._waiting = ""

    def tell(self, pods: list[dict[str, Any]]) -> None:
        """Start following the first pod's log, and report why others wait."""
        waiting = "; ".join(filter(None, (_waits_for(pod) for pod in pods)))
        if waiting and waiting != self._waiting:
            logger.info("TrainJob %s waits: %s", self._job, waiting)
        self._waiting = waiting
        for pod in pods:
            name, labels = pod["metadata"]["name"], pod["metadata"].get("labels") or {}
            if labels.get(_INDEX) == "0" and _phase_of(pod) != "Pending" and name not in self._threads:
                self._threads[name] = threading.Thread(
                    target=self._follow, args=(name,), name=f"log-{name}", daemon=True
                )
                self._threads[name].start()

    def close(self, wait_s: float = 5.0) -> None:
        """Wait up to `wait_s` seconds for the log's end."""
        for thread in self._threads.values():
            thread.join(wait_s)

    def _follow(self, pod: str) -> None:
        """Copy a pod's lines to standard error; after a broken connection, from the last line shown."""
        last, seen_at = "", time.monotonic()
        for again in range(100):
            try:
                since_s = int(time.monotonic() - seen_at) + 5 if again else None
                for line in self._cluster.follow(pod, since_s=since_s):
                    stamp, _, text = line.partition(" ")
                    if stamp > last:
                        last, seen_at = stamp, time.monotonic()
                        sys.stderr.write(f"{text}\n")
                pods = {one["metadata"]["name"]: one for one in self._cluster.pods(self._job)}
                if pod not in pods or _phase_of(pods[pod]) in _ENDED:
                    return
            except ClusterError as error:
                logger.debug("the log of %s broke off: %s", pod, error)
            time.sleep(1.0)


def _phase_of(pod: dict[str, Any]) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _waits_for(pod: dict[str, Any]) -> str:
    """Why a pod does not run yet, or empty."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{name}: {condition.get('message')}"
    for container in status.get("containerStatuses") or []:
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{name}: {waiting['reason']}: {waiting.get('message')}"
    return ""
