"""Check the volume of the model cache: its claim, its storage class and its access modes."""

from __future__ import annotations

from collections.abc import Iterator

from spin_components.runtime.kubernetes_api import KubernetesApi, path_of
from spin_pipeline.cluster.preflight.accounts import unseen
from spin_pipeline.cluster.preflight.findings import Finding, failed, passed, warned

_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


def check_model_cache(kubernetes: KubernetesApi, namespace: str, claim: str) -> Iterator[Finding]:
    """Check the claim that `cluster.model_cache_claim` names."""
    subject = "model cache"
    response = kubernetes.get(path_of("api", "v1", "namespaces", namespace, "persistentvolumeclaims", claim))
    if response.status == 404:
        remedy = (
            "kubectl apply -k manifests/overlays/dev (or gpu) makes spin-model-cache; or set cluster.model_cache_claim"
        )
        yield failed(subject, f"the claim {claim} does not exist in {namespace}", remedy)
        return
    if not response.is_ok:
        yield unseen(subject, claim, response)
        return
    spec, phase = response.body.get("spec", {}), response.body.get("status", {}).get("phase", "Pending")
    modes = spec.get("accessModes") or []
    if phase == "Bound":
        yield from _check_modes(claim, modes)
    elif phase == "Lost":
        yield failed(subject, f"the volume of {claim} is lost", f"delete and make the claim anew in {namespace}")
    else:
        yield from _check_class(kubernetes, claim, spec.get("storageClassName"))
        yield from _check_modes(claim, modes)


def _check_modes(claim: str, modes: list[str]) -> Iterator[Finding]:
    if modes == ["ReadWriteOncePod"]:
        remedy = "make a claim with ReadWriteMany, or ReadWriteOnce on a cluster of one node"
        yield failed("model cache", f"{claim} is for one pod at a time; steps run in parallel", remedy)
    elif "ReadWriteMany" not in modes:
        remedy = "fine on one node; with several, pods wait for that one: make a claim with ReadWriteMany"
        yield warned("model cache", f"{claim} is {', '.join(modes)}: all pods must be on one node", remedy)
    else:
        yield passed("model cache", f"{claim}, ReadWriteMany")


def _check_class(kubernetes: KubernetesApi, claim: str, name: str | None) -> Iterator[Finding]:
    """Check the storage class of a claim that has no volume yet."""
    subject = "model cache"
    if name == "":
        yield failed(subject, f"{claim} is unbound and asks for no storage class", "make a volume that fits it by hand")
        return
    response = kubernetes.get("/apis/storage.k8s.io/v1/storageclasses")
    if not response.is_ok:
        yield unseen(subject, "the storage classes", response)
        return
    classes = {item["metadata"]["name"]: item for item in response.body.get("items") or []}
    marked = [
        known
        for known, item in classes.items()
        if (item["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true"
    ]
    wanted = name or (marked[0] if marked else None)
    known = ", ".join(sorted(classes)) or "none"
    if wanted is None:
        remedy = "name one in the claim's storageClassName, or mark one as the default"
        yield failed(subject, f"{claim} names no storage class and none is the default; there are: {known}", remedy)
    elif wanted not in classes:
        yield failed(subject, f"{claim} needs the storage class {wanted}; there are: {known}", "name one that exists")
    elif classes[wanted].get("volumeBindingMode") == "WaitForFirstConsumer":
        yield passed(subject, f"{claim} gets its volume from {wanted} when the first pod asks for it")
    else:
        remedy = f"kubectl describe pvc {claim} says why"
        yield warned(subject, f"{claim} waits for a volume of {wanted}", remedy)
