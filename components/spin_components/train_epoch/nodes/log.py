"""Shows the log of a TrainJob's first pod as it is written, and why pods do not start."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from spin_components.train_epoch.nodes.cluster import Cluster

logger = logging.getLogger(__name__)

_INDEX = "batch.kubernetes.io/job-completion-index"
_ENDED = ("Succeeded", "Failed")


class NodeLog:
    """Follows a job's pods; failures of its own are logged, never raised.

    Args:
        cluster: API of the cluster.
        job: name of the TrainJob.
    """

    def __init__(self, cluster: Cluster, job: str) -> None:
        self._cluster, self._job = cluster, job
        self._threads: dict[str, threading.Thread] = {}
        self._waiting = ""

    def tell(self) -> None:
        """Read the pods' state: start to follow the log of the first, and log what others wait for."""
        pods = self._cluster.pods(self._job)
        waiting = "; ".join(filter(None, (_waits_for(pod) for pod in pods)))
        if waiting and waiting != self._waiting:
            logger.info("TrainJob %s waits: %s", self._job, waiting)
        self._waiting = waiting
        for pod in pods:
            name = pod.metadata.name
            if pod.metadata.labels.get(_INDEX) == "0" and pod.status.phase != "Pending" and name not in self._threads:
                self._threads[name] = threading.Thread(
                    target=self._follow, args=(name,), name=f"log-{name}", daemon=True
                )
                self._threads[name].start()

    def close(self, wait_s: float = 5.0) -> None:
        """Wait briefly for the rest of the log."""
        for thread in self._threads.values():
            thread.join(wait_s)

    def _follow(self, pod: str) -> None:
        """Copy a pod's lines to standard error; after a broken connection, continue after the last one shown."""
        last, seen_at = "", time.monotonic()
        for again in range(100):
            try:
                since_s = int(time.monotonic() - seen_at) + 5 if again else None
                for line in self._cluster.follow(pod, since_s=since_s):
                    stamp, _, text = line.partition(" ")
                    if stamp > last:
                        last, seen_at = stamp, time.monotonic()
                        sys.stderr.write(f"{text}\n")
                if not any(
                    p.metadata.name == pod and p.status.phase not in _ENDED for p in self._cluster.pods(self._job)
                ):
                    return
            except (ApiException, HTTPError) as error:
                logger.debug("the log of %s broke off: %s", pod, error)
            time.sleep(1.0)


def _waits_for(pod: Any) -> str:
    """Why a pod does not run yet; empty if it runs."""
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{pod.metadata.name}: {condition.message}"
    for status in pod.status.container_statuses or []:
        if status.state.waiting and status.state.waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            return f"{pod.metadata.name}: {status.state.waiting.reason}: {status.state.waiting.message}"
    return ""
