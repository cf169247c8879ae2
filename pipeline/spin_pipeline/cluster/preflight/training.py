"""Check Kubeflow Trainer, which training on several nodes needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spin_components.runtime.kubernetes_api import KubernetesApi, path_of
from spin_components.training.nodes.train_job import GROUP, VERSION
from spin_pipeline.cluster.preflight.accounts import unseen
from spin_pipeline.cluster.preflight.findings import Finding, failed, passed, warned

_KUBERNETES_BACKOFF = 6
_JOBSET_POLICY = "OnFailure"


def check_trainer(kubernetes: KubernetesApi, runtime: str) -> Iterator[Finding]:
    """Check that TrainJobs are served and that their ClusterTrainingRuntime exists."""
    subject = "trainer"
    install = "install Kubeflow Trainer 2 and its runtimes (manifests/README.md), or set hardware.nodes = 1"
    served = kubernetes.get(path_of("apis", GROUP, VERSION))  # what is served is open to everyone who is let in
    if served.status == 404:
        yield failed(subject, f"hardware.nodes is above 1, and {GROUP}/{VERSION} is not served", install)
        return
    if not served.is_ok:
        yield unseen(subject, f"{GROUP}/{VERSION}", served)
        return
    names = {item.get("name") for item in served.body.get("resources") or []}
    if "trainjobs" not in names:
        yield failed(subject, f"{GROUP}/{VERSION} serves no trainjobs", install)
        return
    yield passed(subject, f"TrainJobs of {GROUP}/{VERSION}")
    response = kubernetes.get(path_of("apis", GROUP, VERSION, "clustertrainingruntimes", runtime))
    if response.status == 404:
        remedy = "kubectl apply --server-side -k manifests/training, or name another one in cluster.training_runtime"
        yield failed(subject, f"there is no ClusterTrainingRuntime {runtime}", remedy)
    elif not response.is_ok:
        yield unseen(subject, f"the ClusterTrainingRuntime {runtime}", response)
    elif restarts := _restarts(response.body):
        remedy = "kubectl apply --server-side -k manifests/training, and leave cluster.training_runtime at its default"
        yield warned(subject, f"ClusterTrainingRuntime {runtime} restarts a rank that fails ({restarts})", remedy)
    else:
        yield passed(subject, f"ClusterTrainingRuntime {runtime}")


def _restarts(runtime: dict[str, Any]) -> str:
    """What a runtime says that restarts ranks; empty where the first failure ends the job.

    A rank alone cannot go on, and the reason of its failure is lost with its log; the step begins the job again itself.
    """
    spec = runtime.get("spec", {}).get("template", {}).get("spec", {})
    found = {"maxRestarts": (spec.get("failurePolicy") or {}).get("maxRestarts", 0)}
    for replicated in spec.get("replicatedJobs") or []:
        job = replicated.get("template", {}).get("spec", {})
        found["backoffLimit"] = max(found.get("backoffLimit", 0), job.get("backoffLimit", _KUBERNETES_BACKOFF))
        policy = job.get("template", {}).get("spec", {}).get("restartPolicy", _JOBSET_POLICY)
        if policy != "Never":
            found["restartPolicy"] = policy
    return ", ".join(f"{name}: {value}" for name, value in found.items() if value)
