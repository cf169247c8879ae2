"""The TrainJobs and pods of one namespace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from spin_components.errors import ClusterError, ConfigError, EngineError
from spin_components.runtime.kubernetes_api import CONFLICT, NOT_FOUND, Response, connect_kubernetes, path_of
from spin_components.training.nodes.train_job import GROUP, PLURAL, VERSION, Identity, owner_of

logger = logging.getLogger(__name__)

_PATIENCE_S = 300
_JOBSET = "jobset.sigs.k8s.io/jobset-name"


class Cluster:
    """TrainJobs and pods of one namespace, by requests that are repeated while their failure may pass.

    Args:
        identity: of this pod.

    Raises:
        ConfigError: this process has no connection to a cluster.
    """

    def __init__(self, identity: Identity) -> None:
        try:
            self._api = connect_kubernetes(patience_s=_PATIENCE_S)
        except ConfigError as error:
            raise ConfigError(f"hardware.nodes is above 1, which needs a cluster: {error}") from error
        self._identity = identity
        self._jobs = path_of("apis", GROUP, VERSION, "namespaces", identity.namespace, PLURAL)
        self._pods = path_of("api", "v1", "namespaces", identity.namespace, "pods")

    def create(self, body: dict[str, Any]) -> bool:
        """Create a TrainJob; False where one of that name exists.

        Raises:
            ConfigError: the cluster has no TrainJobs, does not let us make one, or refuses this one.
            EngineError: it does not answer.
        """
        response = self._api.post(self._jobs, body)
        if response.status == CONFLICT:
            return False
        self._check("create", response)
        return True

    def read(self, name: str) -> dict[str, Any] | None:
        """A TrainJob; None where there is none. Raises as `create`."""
        response = self._api.get(self._jobs + path_of(name))
        if response.status == NOT_FOUND:
            return None
        self._check("get", response)
        return response.body

    def delete(self, name: str) -> None:
        """Delete a TrainJob; its pods end after it, and are gone when `pods` returns none. Raises as `create`.

        Trainer makes the pods of a job anew that is deleted in the foreground, while it waits for their end.
        """
        response = self._api.delete(self._jobs + path_of(name), propagationPolicy="Background")
        if response.status != NOT_FOUND:
            self._check("delete", response)

    def adopt(self, name: str) -> None:
        """Make this pod the owner of a TrainJob, in place of one that Kubernetes may collect with it."""
        owner = owner_of(self._identity)
        if owner is None:
            return
        response = self._api.patch(self._jobs + path_of(name), {"metadata": {"ownerReferences": [owner]}})
        if not response.is_ok:
            logger.warning("TrainJob %s ends with the pod of an earlier try, its owner: %s", name, response.error)

    def pods(self, job: str) -> list[dict[str, Any]]:
        """Pods of a TrainJob, by name; none where they may not be listed."""
        response = self._api.get(self._pods, labelSelector=f"{_JOBSET}={job}")
        if not response.is_ok:
            logger.warning("the pods of %s cannot be listed: %s", job, response.error)
        return sorted(response.body.get("items") or [], key=lambda pod: str(pod["metadata"]["name"]))

    def last_lines(self, pod: str, num_lines: int, *, is_previous: bool = False) -> list[str]:
        """The end of a pod's log, or of its container before the last restart; empty where it cannot be read."""
        previous = {"previous": "true"} if is_previous else {}
        try:
            return list(self._api.lines(self._log_of(pod), tailLines=str(num_lines), **previous))
        except ClusterError as error:
            logger.warning("the log of %s cannot be read: %s", pod, error)
            return []

    def follow(self, pod: str, *, since_s: int | None) -> Iterator[str]:
        """Yield lines of a pod's log as they are written, each after its time, until the pod ends.

        Raises:
            ClusterError: the connection broke.
        """
        since = {"sinceSeconds": str(since_s)} if since_s else {}
        yield from self._api.lines(self._log_of(pod), follow="true", timestamps="true", **since)

    def _log_of(self, pod: str) -> str:
        return f"{self._pods}{path_of(pod, 'log')}"

    def _check(self, verb: str, response: Response) -> None:
        if response.is_ok:
            return
        where = f"namespace {self._identity.namespace}"
        if response.is_passing:
            raise EngineError(
                f"Kubernetes has not answered for {_PATIENCE_S} s ({response.error}); the TrainJob goes on, and this "
                "step follows it when it is run again"
            )
        if response.status == 401 or f"cannot {verb} resource" in response.error:
            raise ConfigError(
                f"hardware.nodes is above 1, but service account {self._identity.service_account} may not {verb} "
                f"TrainJobs in {where}; bind it to the Role of manifests/base"
            )
        if response.status == NOT_FOUND:
            raise ConfigError(
                f"hardware.nodes is above 1, but this cluster has no TrainJob of {GROUP}/{VERSION}; install Kubeflow "
                "Trainer 2.2 or later, or set hardware.nodes = 1"
            )
        raise ConfigError(f"the TrainJob is refused in {where}: {response.error}")
