"""Whether both servers answer, and in a version that was made for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from spin_pipeline.cluster.preflight.asking import Answer, Api
from spin_pipeline.cluster.preflight.findings import Finding, failed, passed, warned

KFP_VERSIONS = ((2, 15), (2, 17))
"""First and last minor version of Kubeflow Pipelines that the pipeline is compiled for."""

KUBERNETES_VERSIONS = ((1, 29), (1, 33))
"""First and last minor version of Kubernetes that the manifests are validated against."""


@dataclass(frozen=True, slots=True)
class Health:
    """What KFP says of itself.

    Attributes:
        is_multi_user: runs execute in a namespace of their user, else in KFP's own.
        version: as it was tagged; empty where it was built without a tag.
    """

    is_multi_user: bool
    version: str


def ask_health(pipelines: Api) -> Answer:
    """What KFP says of itself; see `health_of`."""
    return pipelines.get("/apis/v2beta1/healthz")


def health_of(answer: Answer) -> Health | None:
    """Read a health answer; None where it is not KFP's."""
    is_multi_user = answer.body.get("multi_user")
    if not answer.is_ok or not isinstance(is_multi_user, bool):
        return None
    tag = str(answer.body.get("tag_name", ""))
    return Health(is_multi_user, "" if tag == "unknown" else tag)


def check_pipelines(pipelines: Api, answer: Answer) -> Iterator[Finding]:
    """KFP's API: reachable, KFP, and of a version that takes the pipeline."""
    subject = "pipelines"
    health = health_of(answer)
    if health is None:
        found = answer.why_not or f"its health is {str(answer.body)[:100]}, which is not what KFP says"
        yield failed(subject, f"{pipelines.host} does not answer as KFP's API: {found}", _pipelines_remedy(answer))
        return
    mode = "for several users" if health.is_multi_user else "for one user"
    version = _minor(health.version)
    where = f"KFP {health.version or 'of an unknown version'}, {mode}, at {pipelines.host}"
    first, last = ("{}.{}".format(*bound) for bound in KFP_VERSIONS)
    if version is None:
        remedy = f"see which image the deployment ml-pipeline runs: expected {first} to {last}"
        yield warned(subject, where, remedy)
    elif not KFP_VERSIONS[0] <= version <= KFP_VERSIONS[1]:
        yield failed(subject, where, f"the pipeline needs KFP {first} to {last}; install one of those")
    else:
        yield passed(subject, where)


def check_kubernetes(kubernetes: Api) -> Iterator[Finding]:
    """Kubernetes' API: reachable, and of a version that the manifests are validated for."""
    subject = "kubernetes"
    answer = kubernetes.get("/version")
    version = _minor(str(answer.body.get("gitVersion", "")))
    if not answer.is_ok or version is None:
        found = answer.why_not or f"its version is {str(answer.body)[:100]}"
        remedy = "check the current context (kubectl config current-context), your credentials and the network"
        yield failed(subject, f"{kubernetes.host} does not answer as a Kubernetes API: {found}", remedy)
        return
    text = f"Kubernetes {answer.body['gitVersion']} at {kubernetes.host}"
    first, last = ("{}.{}".format(*bound) for bound in KUBERNETES_VERSIONS)
    if KUBERNETES_VERSIONS[0] <= version <= KUBERNETES_VERSIONS[1]:
        yield passed(subject, text)
    else:
        yield warned(subject, text, f"the manifests are validated for {first} to {last}; others may well do")


def _minor(version: str) -> tuple[int, int] | None:
    match = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def _pipelines_remedy(answer: Answer) -> str:
    if answer.is_refused:
        return "name a file with a valid token (--token-file), or set KFP_TOKEN"
    return "check --endpoint; from outside: kubectl port-forward -n kubeflow svc/ml-pipeline 8888, and http://127.0.0.1:8888"
