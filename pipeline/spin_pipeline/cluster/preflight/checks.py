"""All checks, each after those that it depends on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spin_components.runtime.kubernetes_api import KubernetesApi
from spin_pipeline.cluster.client import Api
from spin_pipeline.cluster.preflight import accounts, inputs, memory, nodes, secrets, servers, size, training, volumes
from spin_pipeline.cluster.preflight.demands import demands_of
from spin_pipeline.cluster.preflight.findings import Finding, failed
from spin_pipeline.deploy.cluster_settings import Configuration

_NAMESPACE = "kubeflow"
_ACCOUNT, _USER_ACCOUNT = "pipeline-runner", "default-editor"


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that a run is to be submitted to.

    Attributes:
        kubernetes: its API.
        pipelines: KFP's API.
        namespace: that runs execute in where KFP serves one user; empty: KFP's usual one.
        user_namespace: that they execute in where it serves several.
        account: service account of the pods; empty: KFP's usual one.
        is_growing: whether nodes are added when pods wait for them.
    """

    kubernetes: KubernetesApi
    pipelines: Api
    namespace: str = ""
    user_namespace: str = ""
    account: str = ""
    is_growing: bool = False


def check_all(configuration: Configuration, cluster: Cluster) -> Iterator[Finding]:
    """Check everything that a run of this configuration needs, and yield each finding as soon as it is known.

    Args:
        configuration: a run's settings and `[cluster]`.
        cluster: that it is to run on.
    """
    yield from inputs.check_addresses(configuration)
    yield from inputs.check_storage(configuration)
    yield from size.check_size(configuration)
    health = yield from servers.check_pipelines(cluster.pipelines, configuration.cluster.run_as_user)
    is_multi_user = health is not None and health.is_multi_user
    reachable = list(servers.check_kubernetes(cluster.kubernetes))
    yield from reachable
    if any(finding.verdict == "fail" for finding in reachable):
        return
    if is_multi_user and not cluster.user_namespace:
        remedy = "name yours with --namespace, or in KFP_NAMESPACE"
        yield failed("namespace", "KFP serves several users, and none of their namespaces is named", remedy)
        return
    yield from servers.check_retries(cluster.kubernetes, configuration.cluster.retries)
    yield from _check_namespaced(
        configuration,
        cluster,
        cluster.user_namespace if is_multi_user else cluster.namespace or _NAMESPACE,
        cluster.account or (_USER_ACCOUNT if is_multi_user else _ACCOUNT),
        is_multi_user,
    )


def _check_namespaced(
    configuration: Configuration, cluster: Cluster, namespace: str, account: str, is_multi_user: bool
) -> Iterator[Finding]:
    settings, kubernetes = configuration.cluster, cluster.kubernetes
    on_several_nodes = configuration.hardware.nodes > 1
    found = list(accounts.check_namespace(kubernetes, namespace))
    yield from found
    if any(finding.verdict == "fail" for finding in found):
        return
    if is_multi_user:
        yield from accounts.check_our_rights(kubernetes, namespace)
    yield from accounts.check_service_account(kubernetes, namespace, account)
    yield from accounts.check_step_rights(kubernetes, namespace, account, with_jobs=on_several_nodes)
    yield from secrets.check_secrets(kubernetes, namespace, settings)
    demands = demands_of(configuration, settings)
    yield from nodes.check_nodes(kubernetes, demands, is_growing=cluster.is_growing)
    yield from memory.check_memory(kubernetes, configuration, demands)
    if settings.model_cache_claim:
        yield from volumes.check_model_cache(kubernetes, namespace, settings.model_cache_claim)
    if on_several_nodes:
        yield from training.check_trainer(kubernetes, settings.training_runtime)
