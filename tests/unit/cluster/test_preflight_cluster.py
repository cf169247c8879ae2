"""`spin-pipeline preflight`: the checks of a cluster, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1ClusterTrainingRuntime

from spin_pipeline.deploy.cluster_settings import ClusterSettings
from support.checks import Check, findings, problems
from support.kubernetes_objects import TRAINER
from support.kubernetes_rights import User, service_account
from support.kubernetes_server import KubernetesServer
from support.scene import (
    NAMESPACE,
    SECRET,
    Kfp,
    binding,
    cluster_object,
    in_namespace,
    node,
    role,
    secret,
    training_runtime,
)

GPU = "nvidia.com/gpu"


def test_a_missing_namespace_ends_the_checks(check: Check) -> None:
    code, checks = check("--namespace", "elsewhere")
    assert code == 1
    assert findings(checks, "namespace") == [("fail", "elsewhere does not exist")]
    assert checks[-1]["subject"] == "namespace"


def test_a_terminating_namespace_fails(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.put(cluster_object("v1", "Namespace", NAMESPACE, status={"phase": "Terminating"}))
    assert findings(check()[1], "namespace") == [("fail", "kubeflow is Terminating")]


def test_single_user_kfp_runs_in_its_own_namespace(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_NAMESPACE", "ours")
    assert findings(check()[1], "namespace") == [("pass", "kubeflow")]


def test_a_missing_service_account_fails(check: Check) -> None:
    code, checks = check("--service-account", "nobody")
    assert code == 1
    assert findings(checks, "service account") == [("fail", "nobody does not exist in kubeflow")]


def test_steps_need_to_report_results(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.put(role("pipeline-runner", [("argoproj.io", ["workflowtaskresults"], ["create"])]))
    code, checks = check()
    assert code == 1
    message = "pipeline-runner may not patch workflowtaskresults.argoproj.io, get configmaps/kfp-launcher"
    assert findings(checks, "rights of steps") == [("fail", message)]


def test_several_nodes_need_the_trainer_its_runtime_and_the_rights(check: Check, kubernetes: KubernetesServer) -> None:
    several = ("--set", "hardware.nodes=2")
    code, checks = check(*several)
    assert code == 1
    assert "trainer.kubeflow.org/v1alpha1 is not served" in findings(checks, "trainer")[0][1]
    kubernetes.objects.kinds.extend(TRAINER)
    code, checks = check(*several)
    assert findings(checks, "trainer")[1] == ("fail", "there is no ClusterTrainingRuntime spin-train-epoch")
    missing = findings(checks, "rights of steps")[0][1]
    assert "create/get/patch/delete trainjobs.trainer.kubeflow.org" in missing and "get pods/log" in missing
    kubernetes.put(
        training_runtime(),
        role(
            "jobs",
            [
                ("trainer.kubeflow.org", ["trainjobs"], ["create", "get", "patch", "delete"]),
                ("", ["pods"], ["list"]),
                ("", ["pods/log"], ["get"]),
            ],
        ),
        binding("jobs", "jobs", "pipeline-runner"),
    )
    assert problems(check(*several)[1]) == []


def test_a_runtime_that_restarts_ranks_is_a_warning(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.objects.kinds.extend(TRAINER)
    shipped = cluster_object("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime", "torch-distributed")
    kubernetes.put({**shipped, "spec": {"template": {"spec": {"replicatedJobs": [{"name": "node"}]}}}})
    _, checks = check("--set", "hardware.nodes=2", "--set", "cluster.training_runtime=torch-distributed")
    verdict, words = findings(checks, "trainer")[1]
    assert verdict == "warn"
    assert "torch-distributed restarts a rank that fails (backoffLimit: 6, restartPolicy: OnFailure)" in words


def test_our_training_runtime_is_strictly_of_the_trainers_schema() -> None:
    runtime = training_runtime()
    assert TrainerV1alpha1ClusterTrainingRuntime.from_dict(runtime).to_dict() == runtime
    assert runtime["metadata"]["name"] == ClusterSettings().training_runtime


@pytest.mark.parametrize(
    ("data", "words"),
    [
        # as KFP 2.17 ships it
        (
            {"workflowDefaults": "spec: {templateDefaults: {retryStrategy: {limit: 2, retryPolicy: OnError}}}"},
            "Argo repeats a pod that was deleted or lost, not one that failed",
        ),
        (
            {"config": "workflowDefaults: {spec: {}}"},
            "Argo repeats a pod that failed, not one that was deleted or lost",
        ),
        (
            {"config": "workflowDefaults: {spec: {templateDefaults: {retryStrategy: {retryPolicy: Always}}}}"},
            "Argo repeats a pod that failed, was deleted or lost",
        ),
    ],
)
def test_which_retries_hold_is_read_from_the_workflow_controller(
    check: Check, kubernetes: KubernetesServer, data: dict[str, str], words: str
) -> None:
    kubernetes.put(in_namespace("v1", "ConfigMap", "workflow-controller-configmap", data=data))
    by_the_step = "3 by the step itself, where it was killed or its failure may pass; "
    assert findings(check()[1], "retries") == [("pass", by_the_step + words)]


def test_kfp_2_15_takes_no_user(check: Check, health: Kfp) -> None:
    health.health["tag_name"] = "2.15.0"
    code, checks = check()
    assert (code, findings(checks, "pipelines")[0][0]) == (1, "fail")
    assert "cluster.run_as_user = 1000" in findings(checks, "pipelines")[0][1]
    assert findings(check("--set", "cluster.run_as_user=0")[1], "pipelines")[0][0] == "pass"


def test_one_node_needs_no_trainer(check: Check) -> None:
    assert findings(check()[1], "trainer") == []


def test_a_secret_must_have_the_named_keys_with_values(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.put(secret("spin-storage", {"S3_ENDPOINT": SECRET, "AWS_ACCESS_KEY_ID": "", "other": SECRET}))
    code, checks = check()
    assert code == 1
    message = "spin-storage has no AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; its keys: S3_ENDPOINT, other"
    assert findings(checks, "storage secret") == [("fail", message)]


def test_the_secret_and_its_keys_may_have_other_names(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.put(secret("mlpipeline-minio-artifact", {"accesskey": SECRET, "secretkey": SECRET}))
    names = 'cluster.storage_env={AWS_ACCESS_KEY_ID = "accesskey", AWS_SECRET_ACCESS_KEY = "secretkey"}'
    code, checks = check("--set", "cluster.storage_secret=mlpipeline-minio-artifact", "--set", names)
    assert code == 0
    assert findings(checks, "storage secret") == [("pass", "mlpipeline-minio-artifact has accesskey, secretkey")]


def test_no_secret_is_needed_if_pods_have_an_identity(check: Check, kubernetes: KubernetesServer) -> None:
    code, checks = check("--set", "cluster.storage_secret=")
    assert (code, [one for one, _ in findings(checks, "storage secret")]) == (0, ["pass"])
    assert not any("/secrets/" in request for request in kubernetes.requests)


def test_the_hubs_secret_is_checked_if_one_is_named(check: Check, kubernetes: KubernetesServer) -> None:
    code, checks = check("--set", "cluster.hub_secret=hub")
    assert code == 1 and findings(checks, "hub secret") == [("fail", "hub does not exist in kubeflow")]
    kubernetes.put(secret("hub", {"HF_TOKEN": SECRET}))
    assert check("--set", "cluster.hub_secret=hub")[0] == 0


def test_the_registrys_secret_must_have_its_type(check: Check, kubernetes: KubernetesServer) -> None:
    named = ("--set", "cluster.image_pull_secret=registry")
    assert findings(check(*named)[1], "image pull secret") == [("fail", "registry does not exist in kubeflow")]
    kubernetes.put(secret("registry", {".dockerconfigjson": SECRET}))
    assert "has the type 'Opaque'" in findings(check(*named)[1], "image pull secret")[0][1]
    kubernetes.put(secret("registry", {"other": SECRET}, kind="kubernetes.io/dockerconfigjson"))
    assert findings(check(*named)[1], "image pull secret") == [("fail", "registry has no .dockerconfigjson")]
    kubernetes.put(secret("registry", {".dockerconfigjson": SECRET}, kind="kubernetes.io/dockerconfigjson"))
    assert check(*named)[0] == 0


def test_gpus_must_be_on_one_node_for_one_pod(check: Check, kubernetes: KubernetesServer) -> None:
    for name in ("a", "b"):
        kubernetes.put(node(name, cpu="64", memory="512Gi", gpu="4"))
    asks = (
        "--set",
        f"placement.accelerator={GPU}",
        "--set",
        "hardware.ranks=8",
        "--set",
        "hardware.memory_check=off",
        "--set",
        "training.global_batch_size=32",
    )
    code, checks = check(*asks)
    assert code == 1
    verdict, message = findings(checks, "nodes")[-1]
    assert verdict == "fail" and message.startswith(
        "no node can hold train-epoch (4 cpu, 16 GiB memory, 8 nvidia.com/gpu)"
    )
    assert f"the most {GPU} of a node is 4" in message
    kubernetes.put(node("c", cpu="64", memory="512Gi", gpu="8"))
    assert check(*asks)[0] == 0


def test_a_tainted_gpu_node_is_named_with_its_taint(check: Check, kubernetes: KubernetesServer) -> None:
    taint = {"key": GPU, "value": "present", "effect": "NoSchedule"}
    kubernetes.put(node("gpu", taints=[taint], cpu="64", memory="512Gi", gpu="8"))
    asks = ("--set", f"placement.accelerator={GPU}")
    code, checks = check(*asks)
    assert code == 1 and f"1 of 2: taint {GPU}=present:NoSchedule" in findings(checks, "nodes")[-1][1]
    bears = f'placement.tolerations=[{{key = "{GPU}", operator = "Exists"}}]'
    assert check(*asks, "--set", bears)[0] == 0


def test_shards_that_must_wait_are_a_warning_and_nodes_of_one_training_are_not(
    check: Check, kubernetes: KubernetesServer
) -> None:
    kubernetes.objects.kinds.extend(TRAINER)
    code, checks = check("--set", "generation.shards=5")  # 8 cores for pods that request 4
    assert code == 0
    assert ("warn", "generate (4 cpu, 16 GiB memory): 5 at once, room for 2; the others wait") in findings(
        checks, "nodes"
    )
    code, checks = check("--set", "hardware.nodes=4", "--set", "training.global_batch_size=16")
    assert "needs 4 pods at once, room for 2" in findings(checks, "nodes")[-1][1]


def test_with_autoscaling_too_few_nodes_are_a_warning(check: Check) -> None:
    code, checks = check("--set", f"placement.accelerator={GPU}", "--autoscaled")
    assert code == 0
    assert [one for one, _ in findings(checks, "nodes")] == ["pass", "warn", "warn", "warn"]


def claim(mode: str, phase: str, **spec: Any) -> dict[str, Any]:
    fields = {"spec": {"accessModes": [mode], **spec}, "status": {"phase": phase}}
    return in_namespace("v1", "PersistentVolumeClaim", "cache", **fields)


def test_the_model_cache_must_be_claimed_and_shared(check: Check, kubernetes: KubernetesServer) -> None:
    named = ("--set", "cluster.model_cache_claim=cache")
    assert findings(check(*named)[1], "model cache") == [("fail", "the claim cache does not exist in kubeflow")]
    for mode, verdict in (("ReadWriteMany", "pass"), ("ReadWriteOnce", "warn"), ("ReadWriteOncePod", "fail")):
        kubernetes.put(claim(mode, "Bound"))
        code, checks = check(*named)
        assert [one for one, _ in findings(checks, "model cache")] == [verdict]
        assert code == (verdict == "fail")
    kubernetes.put(claim("ReadWriteMany", "Lost"))
    assert findings(check(*named)[1], "model cache") == [("fail", "the volume of cache is lost")]


def test_an_unbound_claim_needs_a_class_that_exists(check: Check, kubernetes: KubernetesServer) -> None:
    named = ("--set", "cluster.model_cache_claim=cache")
    kubernetes.put(claim("ReadWriteMany", "Pending"))
    assert (
        "names no storage class and none is the default; there are: none"
        in findings(check(*named)[1], "model cache")[0][1]
    )
    lazy = cluster_object("storage.k8s.io/v1", "StorageClass", "lazy", volumeBindingMode="WaitForFirstConsumer")
    kubernetes.put(lazy)
    kubernetes.put(claim("ReadWriteMany", "Pending", storageClassName="quick"))
    message = "cache needs the storage class quick; there are: lazy"
    assert findings(check(*named)[1], "model cache")[0] == ("fail", message)
    lazy["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    kubernetes.put(lazy)
    kubernetes.put(claim("ReadWriteMany", "Pending"))
    assert check(*named)[0] == 0
    kubernetes.put(cluster_object("storage.k8s.io/v1", "StorageClass", "quick", volumeBindingMode="Immediate"))
    kubernetes.put(claim("ReadWriteMany", "Pending", storageClassName="quick"))
    assert findings(check(*named)[1], "model cache")[0] == ("warn", "cache waits for a volume of quick")


def test_missing_read_permissions_are_warnings(
    check: Check, kubernetes: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes.users["nobodys"] = User("nobody")
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.write_kubeconfig(tmp_path / "nobody", "nobodys")))
    code, checks = check("--set", "cluster.model_cache_claim=cache")
    assert code == 0
    warnings = {one["subject"] for one in checks if one["verdict"] == "warn"} - {"storage"}
    assert warnings == {"namespace", "service account", "rights of steps", "storage secret", "nodes", "model cache"}
    assert "403 Forbidden" in findings(checks, "nodes")[0][1]


def test_an_unanswered_request_to_kubernetes_fails_its_check(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.script = lambda request: 500 if "/nodes" in request else None
    code, checks = check()
    assert code == 1
    assert findings(checks, "nodes") == [("fail", "the nodes: 500 Internal Server Error: injected by the test")]


def test_in_multi_user_kfp_the_namespace_and_the_callers_rights_are_checked(
    check: Check, health: Kfp, kubernetes: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    health.health["multi_user"] = True
    code, checks = check()
    assert code == 1 and "none of their namespaces is named" in findings(checks, "namespace")[0][1]
    kubernetes.put(in_namespace("v1", "ServiceAccount", "default-editor"))
    kubernetes.put(binding("default-editor", "pipeline-runner", "default-editor"))
    assert problems(check("--namespace", NAMESPACE)[1]) == []
    kubernetes.users["ci"] = service_account(NAMESPACE, "ci")
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.write_kubeconfig(tmp_path / "ci", "ci")))
    code, checks = check("--namespace", NAMESPACE)
    assert code == 1
    assert "we may not create/get/list pipelines.pipelines.kubeflow.org" in findings(checks, "our rights")[0][1]
