"""Check that the pods' Secrets exist with the keys they need; values are tested for being set, and not read further."""

from __future__ import annotations

from collections.abc import Iterator

from spin_components.runtime.kubernetes_api import KubernetesApi, path_of
from spin_components.settings.attempt import JUDGE_KEY
from spin_pipeline.cluster.preflight.accounts import unseen
from spin_pipeline.cluster.preflight.findings import Finding, failed, passed
from spin_pipeline.deploy.cluster_settings import ClusterSettings

_REGISTRY_TYPES = {
    "kubernetes.io/dockerconfigjson": ".dockerconfigjson",
    "kubernetes.io/dockercfg": ".dockercfg",
}


def check_secrets(kubernetes: KubernetesApi, namespace: str, cluster: ClusterSettings) -> Iterator[Finding]:
    """Check the Secrets of the storage, the model hub, trackers, the judge and the image registry."""
    if cluster.storage_secret:
        keys = sorted(set(cluster.storage_env.values()))
        yield from _check_keys(kubernetes, namespace, "storage secret", cluster.storage_secret, keys)
    else:
        yield passed("storage secret", "none: pods use an identity of their own (cluster.storage_secret is empty)")
    if cluster.hub_secret:
        yield from _check_keys(kubernetes, namespace, "hub secret", cluster.hub_secret, ["HF_TOKEN"])
    if cluster.tracking_secret:  # which of its keys a run needs depends on its trackers
        yield from _check_keys(kubernetes, namespace, "tracking secret", cluster.tracking_secret, [])
    if cluster.judge_secret:
        yield from _check_keys(kubernetes, namespace, "judge secret", cluster.judge_secret, [JUDGE_KEY])
    if cluster.image_pull_secret:
        yield from _check_registry(kubernetes, namespace, cluster.image_pull_secret)


def _check_keys(
    kubernetes: KubernetesApi, namespace: str, subject: str, name: str, keys: list[str]
) -> Iterator[Finding]:
    literals = " ".join(f"--from-literal={key}=…" for key in keys)
    command = f"kubectl create secret generic {name} -n {namespace} {literals}"
    response = kubernetes.get(path_of("api", "v1", "namespaces", namespace, "secrets", name))
    if response.status == 404:
        yield failed(subject, f"{name} does not exist in {namespace}", command)
    elif not response.is_ok:
        yield unseen(subject, name, response)
    else:
        present = {key for key, value in (response.body.get("data") or {}).items() if value}
        if lacking := [key for key in keys if key not in present]:
            found = ", ".join(sorted(present)) or "none"
            remedy = f"kubectl delete secret {name} -n {namespace}, then {command}"
            yield failed(subject, f"{name} has no {', '.join(lacking)}; its keys: {found}", remedy)
        else:
            yield passed(subject, f"{name} has {', '.join(keys or sorted(present)) or 'no keys'}")


def _check_registry(kubernetes: KubernetesApi, namespace: str, name: str) -> Iterator[Finding]:
    command = f"kubectl create secret docker-registry {name} -n {namespace} --docker-server=… --docker-username=… "
    command += "--docker-password=…"
    response = kubernetes.get(path_of("api", "v1", "namespaces", namespace, "secrets", name))
    if response.status == 404:
        yield failed("image pull secret", f"{name} does not exist in {namespace}", command)
    elif not response.is_ok:
        yield unseen("image pull secret", name, response)
    else:
        kind = str(response.body.get("type", ""))
        key = _REGISTRY_TYPES.get(kind)
        if key is None:
            found = f"{name} has the type {kind!r}, expected {' or '.join(map(repr, _REGISTRY_TYPES))}"
            yield failed("image pull secret", found, f"kubectl delete secret {name} -n {namespace}, then {command}")
        elif not (response.body.get("data") or {}).get(key):
            remedy = f"kubectl delete secret {name} -n {namespace}, then {command}"
            yield failed("image pull secret", f"{name} has no {key}", remedy)
        else:
            yield passed("image pull secret", f"{name}, {kind}")
