"""Checks of the namespace, of the pods' service account, and of the rights of that account and of the caller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spin_components.runtime.kubernetes_api import KubernetesApi, Response, path_of
from spin_pipeline.cluster.preflight.findings import Finding, failed, passed, warned

_REVIEWS = "/apis/authorization.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class Right:
    """Verbs on a resource (`pods`, `pods/log`) of an API group, empty for the core one; `name` restricts it to one."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    name: str = ""

    def __str__(self) -> str:
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{'/'.join(self.verbs)} {resource}{'/' if self.name else ''}{self.name}"


STEP_RIGHTS = (
    Right("argoproj.io", "workflowtaskresults", ("create", "patch")),
    Right("", "configmaps", ("get",), "kfp-launcher"),
)
"""Rights of every step's service account: to report results, and to read where artifacts go."""

TRAIN_JOB_RIGHTS = (
    Right("trainer.kubeflow.org", "trainjobs", ("create", "get", "patch", "delete")),
    Right("", "pods", ("list",)),
    Right("", "pods/log", ("get",)),
)
"""Rights that `train-epoch` needs in addition on several nodes; see `spin_components.training.nodes.cluster`."""

OUR_RIGHTS = (
    Right("pipelines.kubeflow.org", "pipelines", ("create", "get", "list")),
    Right("pipelines.kubeflow.org", "experiments", ("create", "get", "list")),
    Right("pipelines.kubeflow.org", "runs", ("create", "get", "list", "terminate")),
    Right("pipelines.kubeflow.org", "jobs", ("create", "get", "list", "delete")),
)
"""Rights that a multi-user KFP requires of the caller who submits and schedules."""


def check_namespace(kubernetes: KubernetesApi, namespace: str) -> Iterator[Finding]:
    """Check that the namespace exists and is not being deleted."""
    response = kubernetes.get(path_of("api", "v1", "namespaces", namespace))
    if response.status == 404:
        remedy = "name the one that KFP runs pipelines in with --namespace: kubeflow, or a user's own profile"
        yield failed("namespace", f"{namespace} does not exist", remedy)
    elif not response.is_ok:
        yield unseen("namespace", namespace, response)
    elif (phase := response.body.get("status", {}).get("phase", "Active")) != "Active":
        yield failed("namespace", f"{namespace} is {phase}", "wait until it is gone, and set it up again")
    else:
        yield passed("namespace", namespace)


def check_service_account(kubernetes: KubernetesApi, namespace: str, account: str) -> Iterator[Finding]:
    """Check that the pods' service account exists."""
    response = kubernetes.get(path_of("api", "v1", "namespaces", namespace, "serviceaccounts", account))
    if response.status == 404:
        remedy = "KFP's own is pipeline-runner, with several users default-editor; name it with --service-account"
        yield failed("service account", f"{account} does not exist in {namespace}", remedy)
    elif not response.is_ok:
        yield unseen("service account", account, response)
    else:
        yield passed("service account", account)


def check_step_rights(kubernetes: KubernetesApi, namespace: str, account: str, *, with_jobs: bool) -> Iterator[Finding]:
    """Check the rights of the pods' service account; a warning where the caller may not read them."""
    user = f"system:serviceaccount:{namespace}:{account}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    path = f"{_REVIEWS}{path_of('namespaces', namespace, 'localsubjectaccessreviews')}"
    review = {"kind": "LocalSubjectAccessReview", "metadata": {"namespace": namespace}}
    asked = (*STEP_RIGHTS, *(TRAIN_JOB_RIGHTS if with_jobs else ()))
    lacking = _lacking(kubernetes, path, review, {"user": user, "groups": groups}, asked, namespace)
    if isinstance(lacking, Response):
        remedy = f"as someone who may: kubectl auth can-i --list -n {namespace} --as {user}"
        yield warned("rights of steps", f"may not ask what {account} may do ({lacking.error})", remedy)
    elif lacking:
        remedy = f"kubectl apply -k manifests/overlays/dev (or gpu) binds them to pipeline-runner in {namespace}"
        yield failed("rights of steps", f"{account} may not {_listed(lacking)}", remedy)
    else:
        yield passed("rights of steps", f"{account} may {_listed(asked)}")


def check_our_rights(kubernetes: KubernetesApi, namespace: str) -> Iterator[Finding]:
    """Check the caller's rights that a multi-user KFP requires."""
    review = {"kind": "SelfSubjectAccessReview"}
    lacking = _lacking(kubernetes, f"{_REVIEWS}/selfsubjectaccessreviews", review, {}, OUR_RIGHTS, namespace)
    if isinstance(lacking, Response):
        remedy = f"kubectl auth can-i create runs.pipelines.kubeflow.org -n {namespace}"
        yield warned("our rights", f"could not ask what we may do ({lacking.error})", remedy)
    elif lacking:
        remedy = f"have a RoleBinding to the ClusterRole kubeflow-edit made for you in {namespace}"
        yield failed("our rights", f"we may not {_listed(lacking)}", remedy)
    else:
        yield passed("our rights", f"we may {_listed(OUR_RIGHTS)}")


def unseen(subject: str, name: str, response: Response) -> Finding:
    """The finding for an object that could not be read: a warning where the caller may not, else a failure."""
    if response.is_refused:
        return warned(subject, f"may not look at {name} ({response.error})", "ask someone who may to run this command")
    return failed(subject, f"{name}: {response.error}", "the Kubernetes API is in trouble; try again when it answers")


def _lacking(
    kubernetes: KubernetesApi,
    path: str,
    review: dict[str, Any],
    subject: dict[str, Any],
    asked: Sequence[Right],
    namespace: str,
) -> list[Right] | Response:
    """The rights that are missing, or the response to a question that failed."""
    lacking = []
    for right in asked:
        resource, _, subresource = right.resource.partition("/")
        missing = []
        for verb in right.verbs:
            attributes = {"namespace": namespace, "verb": verb, "group": right.group, "resource": resource}
            attributes |= {"subresource": subresource} if subresource else {}
            attributes |= {"name": right.name} if right.name else {}
            body = {"apiVersion": "authorization.k8s.io/v1", **review}
            response = kubernetes.post(path, {**body, "spec": {**subject, "resourceAttributes": attributes}})
            if not response.is_ok:
                return response
            if not response.body.get("status", {}).get("allowed"):
                missing.append(verb)
        if missing:
            lacking.append(replace(right, verbs=tuple(missing)))
    return lacking


def _listed(rights: Sequence[Right]) -> str:
    return ", ".join(map(str, rights))
