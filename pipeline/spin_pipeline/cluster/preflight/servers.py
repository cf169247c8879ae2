"""Check that KFP and Kubernetes answer, in supported versions."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator

from spin_components.errors import ClusterAccessError, ClusterError
from spin_components.runtime.kubernetes_api import KubernetesApi
from spin_pipeline.cluster.client import Api, Health
from spin_pipeline.cluster.preflight.findings import Finding, failed, passed, warned

KFP_VERSIONS = ((2, 15), (2, 17))
"""First and last minor version of Kubeflow Pipelines that the pipeline is compiled for."""

KUBERNETES_VERSIONS = ((1, 29), (1, 33))
"""First and last minor version of Kubernetes that the manifests are validated against."""

_TUNNEL = "from outside: kubectl port-forward -n kubeflow svc/ml-pipeline 8888, and --endpoint http://127.0.0.1:8888"


def check_pipelines(pipelines: Api) -> Generator[Finding, None, Health | None]:
    """Check that KFP's API answers, in a version that accepts the pipeline.

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
    else:
        yield passed(subject, where)
    return health


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
