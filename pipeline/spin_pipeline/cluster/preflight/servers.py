"""Check that KFP and Kubernetes answer, in supported versions."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Any

import yaml

from spin_components.errors import ClusterAccessError, ClusterError
from spin_components.runtime.kubernetes_api import KubernetesApi, path_of
from spin_pipeline.cluster.client import Api, Health
from spin_pipeline.cluster.preflight.findings import Finding, failed, passed, warned

KFP_VERSIONS = ((2, 15), (2, 17))
"""First and last minor version of Kubeflow Pipelines that the pipeline is compiled for."""

KUBERNETES_VERSIONS = ((1, 29), (1, 33))
"""First and last minor version of Kubernetes that the manifests are validated against."""

_WITHOUT_USERS = ((2, 15),)
_CONTROLLER = "workflow-controller-configmap"
_TUNNEL = "from outside: kubectl port-forward -n kubeflow svc/ml-pipeline 8888, and --endpoint http://127.0.0.1:8888"


def check_pipelines(pipelines: Api, run_as_user: int) -> Generator[Finding, None, Health | None]:
    """Check that KFP's API answers, in a version that accepts the pipeline.

    Args:
        pipelines: its API.
        run_as_user: user that the pods are to run as; 0 for the image's own.

    Returns: KFP's health; None where it does not answer.
    """
    subject = "pipelines"
    try:
        health = pipelines.health(tries=1)
    except (ClusterAccessError, ClusterError) as error:
        yield failed(subject, str(error), _TUNNEL)
        return None
    users = "several users" if health.is_multi_user else "one user"
    version = _minor(health.version)
    where = f"KFP {health.version or 'of an unknown version'}, for {users}, at {pipelines.target.endpoint}"
    first, last = ("{}.{}".format(*bound) for bound in KFP_VERSIONS)
    if version is None:
        yield warned(subject, where, f"look up the image of the deployment ml-pipeline: expected {first} to {last}")
    elif not KFP_VERSIONS[0] <= version <= KFP_VERSIONS[1]:
        yield failed(subject, where, f"the pipeline needs KFP {first} to {last}; install one of those")
    elif version in _WITHOUT_USERS and run_as_user:
        remedy = "set cluster.run_as_user = 0, or install a later KFP"
        yield failed(subject, f"{where}, refuses pods with cluster.run_as_user = {run_as_user}", remedy)
    else:
        yield passed(subject, where)
    return health


def check_retries(kubernetes: KubernetesApi, retries: int) -> Iterator[Finding]:
    """Report which retries hold: those of the step itself, and Argo's by the workflow controller's configuration.

    Nothing is reported where the configuration may not be read.
    """
    found = kubernetes.get(path_of("api", "v1", "namespaces", "kubeflow", "configmaps", _CONTROLLER))
    if not found.is_ok:
        return
    policy = _retry_policy(found.body.get("data") or {}) or "OnFailure"
    by_argo = {
        "OnError": "Argo repeats a pod that was deleted or lost, not one that failed",
        "OnFailure": "Argo repeats a pod that failed, not one that was deleted or lost",
        "Always": "Argo repeats a pod that failed, was deleted or lost",
    }
    words = by_argo.get(policy, "Argo repeats a pod by an expression")
    yield passed("retries", f"{retries} by the step itself, where it was killed or its failure may pass; {words}")


def _retry_policy(data: dict[str, Any]) -> str:
    """The `retryPolicy` of the templates' defaults; empty where there is none."""
    values = list(data.values())
    while values:
        value = values.pop()
        if isinstance(value, str):
            try:
                parsed = yaml.safe_load(value)
            except yaml.YAMLError:
                continue
            if isinstance(parsed, dict):
                values.append(parsed)
        elif isinstance(value, dict):
            strategy = (value.get("templateDefaults") or {}).get("retryStrategy") or {}
            if policy := strategy.get("retryPolicy"):
                return str(policy)
            values += [one for one in value.values() if isinstance(one, (dict, str))]
    return ""


def check_kubernetes(kubernetes: KubernetesApi) -> Iterator[Finding]:
    """Check that Kubernetes' API answers, in a version that the manifests are validated for."""
    subject = "kubernetes"
    response = kubernetes.get("/version")
    version = _minor(str(response.body.get("gitVersion", "")))
    if not response.is_ok or version is None:
        found = response.error or f"its version is {str(response.body)[:100]}"
        remedy = "check the current context (kubectl config current-context), your credentials and the network"
        yield failed(subject, f"{kubernetes.host} does not answer as a Kubernetes API: {found}", remedy)
        return
    text = f"Kubernetes {response.body['gitVersion']} at {kubernetes.host}"
    first, last = ("{}.{}".format(*bound) for bound in KUBERNETES_VERSIONS)
    if KUBERNETES_VERSIONS[0] <= version <= KUBERNETES_VERSIONS[1]:
        yield passed(subject, text)
    else:
        yield warned(subject, text, f"the manifests are validated for {first} to {last}; others may well do")


def _minor(version: str) -> tuple[int, int] | None:
    match = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None
