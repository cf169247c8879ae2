"""The few requests that train-epoch makes of Kubernetes, retried where that helps, and refused in words."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tenacity
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from spin_components.errors import ConfigError, EngineError
from spin_components.train_epoch.nodes.identity import Identity
from spin_components.train_epoch.nodes.train_job import GROUP, PLURAL, VERSION

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_NOT_FOUND, _CONFLICT = 404, 409
_PATIENCE_S = 300
_TIMEOUT_S = 30
_JOBSET = "jobset.sigs.k8s.io/jobset-name"


def _passes(error: BaseException) -> bool:
    if isinstance(error, ApiException):
        return not error.status or error.status == 429 or error.status >= 500
    return isinstance(error, HTTPError)


class Cluster:
    """TrainJobs and pods of one namespace.

    Args:
        identity: of this pod.
    """

    def __init__(self, identity: Identity) -> None:
        try:
            if path := os.environ.get("KUBECONFIG"):
                config.load_kube_config(path)
            else:
                config.load_incluster_config()
        except config.ConfigException as error:
            raise ConfigError(f"hardware.nodes is above 1, which needs a cluster: {error}") from error
        self._identity = identity
        self._jobs, self._pods = client.CustomObjectsApi(), client.CoreV1Api()
        self._place = {"group": GROUP, "version": VERSION, "namespace": identity.namespace, "plural": PLURAL}

    def create(self, body: dict[str, Any]) -> bool:
        """Create a TrainJob; False where one of that name is there.

        Raises:
            ConfigError: the cluster has no TrainJobs, does not let us make one, or refuses this one.
        """
        try:
            self._do(
                "create",
                lambda: self._jobs.create_namespaced_custom_object(
                    **self._place, body=body, _request_timeout=_TIMEOUT_S
                ),
            )
        except ApiException as error:
            if error.status == _CONFLICT:
                return False
            raise self._refused("create", error) from error
        return True

    def read(self, name: str) -> dict[str, Any] | None:
        """A TrainJob, or None where there is none."""
        try:
            found: dict[str, Any] = self._do(
                "get",
                lambda: self._jobs.get_namespaced_custom_object(**self._place, name=name, _request_timeout=_TIMEOUT_S),
            )
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise self._refused("get", error) from error
        return found

    def delete(self, name: str) -> None:
        """Delete a TrainJob and its pods; it is gone when `read` finds none."""
        try:
            self._do(
                "delete",
                lambda: self._jobs.delete_namespaced_custom_object(
                    **self._place, name=name, propagation_policy="Foreground", _request_timeout=_TIMEOUT_S
                ),
            )
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise self._refused("delete", error) from error

    def pods(self, job: str) -> list[Any]:
        """Pods of a TrainJob, by name; none where they may not be listed."""
        try:
            found = self._do(
                "list",
                lambda: self._pods.list_namespaced_pod(
                    self._identity.namespace, label_selector=f"{_JOBSET}={job}", _request_timeout=_TIMEOUT_S
                ),
            )
        except ApiException as error:
            logger.warning("the pods of %s cannot be listed: %s", job, error.reason)
            return []
        return sorted(found.items, key=lambda pod: str(pod.metadata.name))

    def last_lines(self, pod: str, num_lines: int) -> list[str]:
        """The end of a pod's log; empty where it cannot be read."""
        try:
            text: str = self._do(
                "get",
                lambda: self._pods.read_namespaced_pod_log(
                    pod, self._identity.namespace, tail_lines=num_lines, _request_timeout=_TIMEOUT_S
                ),
            )
        except ApiException as error:
            logger.warning("the log of %s cannot be read: %s", pod, error.reason)
            return []
        return text.splitlines()

    def follow(self, pod: str, *, since_s: int | None) -> Iterator[str]:
        """Lines of a pod's log as they come, each with its time first, until the pod or the connection ends."""
        since = {"since_seconds": since_s} if since_s else {}
        answer = self._pods.read_namespaced_pod_log(
            pod, self._identity.namespace, follow=True, timestamps=True, _preload_content=False, **since
        )
        rest = b""
        for chunk in answer.stream(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode("utf-8", errors="replace") for line in lines)

    def _do(self, verb: str, request: Callable[[], _T]) -> _T:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passes),
            wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=30),
            stop=tenacity.stop_after_delay(_PATIENCE_S),
            before_sleep=lambda state: logger.warning("Kubernetes did not %s a TrainJob or pod; again", verb),
        )
        try:
            return retrying(request)
        except tenacity.RetryError as error:
            raise EngineError(
                f"Kubernetes has not answered for {_PATIENCE_S} s ({error.last_attempt.exception()}); "
                "the TrainJob goes on, and this step takes it up when it is run again"
            ) from error

    def _refused(self, verb: str, error: ApiException) -> ConfigError:
        where = f"namespace {self._identity.namespace}"
        if error.status in (401, 403):
            return ConfigError(
                f"hardware.nodes is above 1, but service account {self._identity.service_account} may not {verb} "
                f"TrainJobs in {where}; bind it to the Role of manifests/base"
            )
        if error.status == _NOT_FOUND:
            return ConfigError(
                f"hardware.nodes is above 1, but this cluster knows no TrainJob of {GROUP}/{VERSION}; install Kubeflow "
                "Trainer 2.2 or later, or set hardware.nodes = 1"
            )
        return ConfigError(f"the TrainJob is refused in {where}: {error.reason}: {_message(error)}")


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.body)[:500]
