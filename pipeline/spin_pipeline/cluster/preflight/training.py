"""Check Kubeflow Trainer, which training on several nodes needs."""

from __future__ import annotations

from collections.abc import Iterator

from spin_components.runtime.kubernetes_api import KubernetesApi, path_of
from spin_components.train_epoch.nodes.train_job import GROUP, VERSION
from spin_pipeline.cluster.preflight.accounts import unseen
from spin_pipeline.cluster.preflight.findings import Finding, failed, passed


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
        remedy = "install Trainer's runtimes, or name another one in cluster.training_runtime"
        yield failed(subject, f"there is no ClusterTrainingRuntime {runtime}", remedy)
    elif not response.is_ok:
        yield unseen(subject, f"the ClusterTrainingRuntime {runtime}", response)
    else:
        yield passed(subject, f"ClusterTrainingRuntime {runtime}")
