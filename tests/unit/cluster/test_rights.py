"""Permissions of the roles in the manifests: all that are needed, and few others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_components.errors import ConfigError
from spin_components.runtime.kubernetes_api import connect_kubernetes
from spin_components.training.nodes.cluster import Cluster as TrainJobs
from spin_components.training.nodes.train_job import Identity
from spin_pipeline.cluster.client import Api
from spin_pipeline.cluster.preflight.accounts import STEP_RIGHTS, TRAIN_JOB_RIGHTS, check_step_rights
from spin_pipeline.cluster.preflight.checks import Cluster, check_all
from spin_pipeline.cluster.target import Target
from spin_pipeline.config import load_settings
from support.built import MANIFESTS, Objects
from support.kubernetes_objects import TRAINER
from support.kubernetes_rights import Access, may, service_account
from support.kubernetes_server import KubernetesServer, kubernetes_server
from support.scene import SECRET, cluster_object, in_namespace, kfp_health, node, secret, training_runtime


@pytest.fixture
def applied(built: Objects) -> Iterator[KubernetesServer]:
    """A server with the objects of overlays/dev and KFP's service account, without KFP's roles."""
    with kubernetes_server() as server:
        server.put(*built["overlays/dev"], in_namespace("v1", "ServiceAccount", "pipeline-runner"))
        yield server


@pytest.mark.parametrize("account", ["pipeline-runner", "spin-runner"])
def test_the_pods_accounts_have_the_rights_that_steps_need(applied: KubernetesServer, account: str) -> None:
    user = service_account("kubeflow", account)
    for right in (*STEP_RIGHTS, *TRAIN_JOB_RIGHTS):
        for verb in right.verbs:
            access = Access(verb, right.group, right.resource, "kubeflow", right.name)
            assert may(applied.objects, user, access), (account, str(right))


def test_the_requests_of_train_epoch_are_within_the_role(
    applied: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied.objects.kinds.extend(TRAINER)
    applied.put(in_namespace("v1", "Pod", "spin-x-node-0-0", status={"phase": "Running"}))
    applied.log("spin-x-node-0-0", "step 1", "step 2", namespace="kubeflow")
    applied.users["runner"] = service_account("kubeflow", "spin-runner")
    monkeypatch.setenv("KUBECONFIG", str(applied.write_kubeconfig(tmp_path / "runner", "runner")))
    cluster = TrainJobs(Identity("kubeflow", "spin-runner", "step", ""))
    job = in_namespace("trainer.kubeflow.org/v1alpha1", "TrainJob", "spin-x")
    assert cluster.create(job) and not cluster.create(job)
    assert cluster.pods("spin-x") == []
    assert cluster.last_lines("spin-x-node-0-0", 1) == ["step 2"]
    assert (cluster.read("spin-x") or {})["kind"] == "TrainJob"
    cluster.delete("spin-x")
    assert cluster.read("spin-x") is None
    applied.users["runner"] = service_account("kubeflow", "another")
    with pytest.raises(ConfigError, match="service account spin-runner may not create"):
        cluster.create(job)


@pytest.mark.parametrize(
    "access",
    [
        Access("get", "", "secrets", "kubeflow", "spin-storage"),
        Access("list", "", "secrets", "kubeflow"),
        Access("create", "", "pods", "kubeflow"),
        Access("create", "", "pods/exec", "kubeflow"),
        Access("delete", "", "pods", "kubeflow"),
        Access("get", "", "configmaps", "kubeflow", "another"),
        Access("create", "rbac.authorization.k8s.io", "rolebindings", "kubeflow"),
        Access("create", "trainer.kubeflow.org", "trainjobs", "default"),
        Access("list", "", "nodes"),
    ],
)
def test_the_pods_accounts_have_no_other_rights(applied: KubernetesServer, access: Access) -> None:
    assert not may(applied.objects, service_account("kubeflow", "spin-runner"), access)


def test_the_submitters_account_can_neither_read_secrets_nor_create_pods(applied: KubernetesServer) -> None:
    user = service_account("kubeflow", "spin-submitter")
    assert may(applied.objects, user, Access("create", "pipelines.kubeflow.org", "runs", "kubeflow"))
    for access in (
        Access("get", "", "secrets", "kubeflow", "spin-storage"),
        Access("get", "", "secrets", "kubeflow", "mlpipeline-minio-artifact"),
        Access("create", "", "pods", "kubeflow"),
        Access("create", "trainer.kubeflow.org", "trainjobs", "kubeflow"),
        Access("create", "pipelines.kubeflow.org", "runs", "default"),
    ):
        assert not may(applied.objects, user, access), access


def test_preflight_as_the_submitter_warns_about_the_secret_only(
    applied: KubernetesServer, built: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    applied.objects.kinds.extend(TRAINER)
    applied.put(
        training_runtime(),
        node("worker", cpu="8", memory="16Gi"),
        secret("spin-storage", {"S3_ENDPOINT": SECRET}),
        cluster_object("storage.k8s.io/v1", "StorageClass", "standard", volumeBindingMode="WaitForFirstConsumer"),
    )
    cache = applied.objects.find("persistentvolumeclaims", "spin-model-cache", "kubeflow")
    assert cache is not None
    applied.put({**cache, "spec": {**cache["spec"], "storageClassName": "standard"}})
    applied.users["submitter"] = service_account("kubeflow", "spin-submitter")
    path = applied.write_kubeconfig(tmp_path / "kubeconfig", "submitter")
    overrides = [
        "cluster.model_cache_claim=spin-model-cache",
        "hardware.nodes=2",
    ]
    configuration = load_settings(str(MANIFESTS / "overlays/dev/run.toml"), overrides)
    with kfp_health() as kfp:
        connections = connect_kubernetes(environment={"KUBECONFIG": str(path)}), Api(Target(kfp.endpoint))
        not_passed = [
            finding for finding in check_all(configuration, Cluster(*connections)) if finding.verdict != "pass"
        ]
    assert [(one.subject, str(one.verdict)) for one in not_passed] == [
        ("storage", "warn"),
        ("storage secret", "warn"),
        ("model cache", "warn"),  # ReadWriteOnce; the cluster has one node
    ]


def test_without_the_manifests_preflight_names_what_is_missing(tmp_path: Path) -> None:
    with kubernetes_server() as bare:
        kubernetes = connect_kubernetes(environment={"KUBECONFIG": str(bare.write_kubeconfig(tmp_path / "kubeconfig"))})
        (finding,) = check_step_rights(kubernetes, "kubeflow", "pipeline-runner", with_jobs=True)
    assert finding.verdict == "fail" and "manifests/overlays/dev" in finding.remedy
