"""`spin-pipeline preflight` against real HTTP servers that speak both APIs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubernetes_objects import TRAINER
from kubernetes_rights import User, service_account
from kubernetes_server import KubernetesServer, kubernetes_server
from s3_server import BUCKET, S3Server, free_port
from spin_components.errors import ConfigError
from spin_pipeline.cli import main
from spin_pipeline.cluster.preflight.connections import connect_kubernetes
from unit.cluster.scene import (
    NAMESPACE,
    SECRET,
    Kfp,
    binding,
    cluster_object,
    in_namespace,
    kfp_health,
    node,
    ready,
    role,
    secret,
)

GPU = "nvidia.com/gpu"
_VARIABLES = (
    "KFP_ENDPOINT",
    "KF_PIPELINES_ENDPOINT",
    "KFP_TOKEN",
    "KFP_NAMESPACE",
    "KUBERNETES_SERVICE_HOST",
    "S3_ENDPOINT",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
)


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    """A cluster that is ready, and the kubeconfig in the environment."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPIN_CACHE_DIR", str(tmp_path / "cache"))
    with kubernetes_server() as server:
        ready(server)
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "kubeconfig")))
        yield server


@pytest.fixture
def kfp() -> Iterator[Kfp]:
    """KFP, as far as its health."""
    with kfp_health() as server:
        yield server


Check = Callable[..., tuple[int, list[dict[str, str]]]]


@pytest.fixture
def check(kubernetes: KubernetesServer, kfp: Kfp, capsys: pytest.CaptureFixture[str]) -> Check:
    """Types the command with `--json`; gives its exit code and what it found, and looks for leaks."""

    def run(*arguments: str, run_uri: str = f"s3://{BUCKET}/runs/x") -> tuple[int, list[dict[str, str]]]:
        command = ["preflight", "--config", "tiny", "--run-uri", run_uri, "--endpoint", kfp.endpoint, "--json"]
        code = main([*command, *arguments])
        printed = capsys.readouterr()
        assert SECRET not in printed.out + printed.err
        value = json.loads(printed.out)
        assert value["ready"] is (code == 0)
        return code, value["checks"]

    return run


def found(checks: list[dict[str, str]], subject: str) -> list[tuple[str, str]]:
    """Verdict and message of the findings on a subject."""
    return [(one["verdict"], one["message"]) for one in checks if one["subject"] == subject]


def wrong(checks: list[dict[str, str]]) -> list[str]:
    """What is not as it should be, without the storage, for which the tests have no keys."""
    return [
        f"{one['subject']}: {one['message']}"
        for one in checks
        if one["verdict"] != "pass" and (one["subject"], one["verdict"]) != ("storage", "warn")
    ]


def test_a_ready_cluster_passes(check: Check) -> None:
    code, checks = check()
    assert code == 0
    assert wrong(checks) == []
    subjects = {one["subject"] for one in checks if one["verdict"] == "pass"}
    assert subjects == {
        "addresses",
        "pipelines",
        "kubernetes",
        "namespace",
        "service account",
        "rights of steps",
        "storage secret",
        "nodes",
    }
    assert all(one["remedy"] for one in checks if one["verdict"] != "pass")


def test_a_person_reads_a_line_a_check_and_a_sum(
    check: Check, kfp: Kfp, kubernetes: KubernetesServer, capsys: pytest.CaptureFixture[str]
) -> None:
    kubernetes.objects.delete(kubernetes.objects.kinds[4], NAMESPACE, "spin-storage")
    code = main(["preflight", "--config", "tiny", "--run-uri", "s3://b/x", "--endpoint", kfp.endpoint])
    text = capsys.readouterr().out
    assert code == 1
    assert "pass  pipelines: KFP 2.17.2, for one user, at http://127.0.0.1" in text
    assert "fail  storage secret: spin-storage does not exist in kubeflow\n      kubectl create secret generic" in text
    assert text.splitlines()[-1].startswith("not ready: ")
    assert "\x1b" not in text  # plain where it is no terminal


@pytest.mark.parametrize(
    ("tag", "verdict"),
    [("2.15.0", "pass"), ("2.17.9", "pass"), ("2.14.3", "fail"), ("2.18.0", "fail"), ("unknown", "warn")],
)
def test_kfp_must_be_of_a_version_that_takes_the_pipeline(check: Check, kfp: Kfp, tag: str, verdict: str) -> None:
    kfp.health["tag_name"] = tag
    code, checks = check()
    assert [one for one, _ in found(checks, "pipelines")] == [verdict]
    assert code == (verdict == "fail")


def test_a_page_that_is_not_kfps_is_told_from_kfp(check: Check, kfp: Kfp) -> None:
    kfp.health = {"hello": "world"}
    assert "which is not what KFP says" in found(check()[1], "pipelines")[0][1]


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_kfp_that_refuses_fails_with_its_status(check: Check, kfp: Kfp, status: int) -> None:
    kfp.status = status
    code, checks = check()
    assert code == 1
    assert f"{status}" in found(checks, "pipelines")[0][1]
    assert found(checks, "nodes")  # the other checks are made all the same


def test_nobody_at_kfps_address_fails(check: Check) -> None:
    code, checks = check("--endpoint", f"http://127.0.0.1:{free_port()}")
    assert code == 1
    message = found(checks, "pipelines")[0][1]
    assert message.endswith(
        "does not answer as KFP's API: Failed to establish a new connection: [Errno 111] Connection refused"
    )


def test_kfp_gets_the_token_and_nobody_else(check: Check, kfp: Kfp, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("the-token\n", "utf-8")
    assert check("--token-file", str(tmp_path / "token"))[0] == 0  # Kubernetes knows only its own token
    assert kfp.tokens == ["Bearer the-token"]


def test_a_kubernetes_api_that_is_away_ends_the_checks(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.script = lambda request: 0
    code, checks = check()
    assert code == 1
    assert [one for one, _ in found(checks, "kubernetes")] == ["fail"]
    assert checks[-1]["subject"] == "kubernetes"


@pytest.mark.parametrize(("version", "verdict"), [("v1.29.4", "pass"), ("v1.33.1+k3s1", "pass"), ("v1.28.0", "warn")])
def test_a_kubernetes_that_was_not_tried_is_a_warning(
    check: Check, kubernetes: KubernetesServer, version: str, verdict: str
) -> None:
    kubernetes.version = version
    code, checks = check()
    assert (code, [one for one, _ in found(checks, "kubernetes")]) == (0, [verdict])


def test_an_unknown_token_is_told_from_a_missing_right(
    check: Check, kubernetes: KubernetesServer, tmp_path: Path
) -> None:
    kubernetes.users.clear()
    code, checks = check()
    assert code == 1
    assert "401 Unauthorized" in found(checks, "kubernetes")[0][1]


def test_without_a_kubeconfig_the_command_is_wrong(
    kubernetes: KubernetesServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, expected in (
        (None, "no kubeconfig at"),
        ("", "cannot be used"),
        ("- a\n", "is no kubeconfig"),
        ("a: [", "is no kubeconfig"),
        ("apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: []\nclusters: []\nusers: []\n", "cannot be used"),
    ):
        path = tmp_path / "other"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content, "utf-8")
        monkeypatch.setenv("KUBECONFIG", str(path))
        assert main(["preflight", "--config", "tiny", "--endpoint", "http://127.0.0.1:1"]) == 2
        assert expected in capsys.readouterr().err


def test_a_pod_without_a_token_is_told_so() -> None:
    environment = {"KUBECONFIG": "/nowhere", "KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(ConfigError, match="this pod has no token for the Kubernetes API"):
        connect_kubernetes(environment=environment)


def test_a_wrong_setting_is_refused_before_anything_is_asked(kubernetes: KubernetesServer, kfp: Kfp) -> None:
    command = ["preflight", "--config", "tiny", "--set", "placement.gpu=1", "--endpoint", kfp.endpoint]
    assert main(command) == 2
    assert kubernetes.requests == [] and kfp.tokens == []


def test_folders_of_this_machine_are_refused(check: Check) -> None:
    code, checks = check("--set", "model.base=models/x", "--set", "data.train=d.jsonl", run_uri="runs/x")
    assert code == 1
    messages = [message for _, message in found(checks, "addresses")]
    assert [message.partition(" = ")[0] for message in messages] == ["run.uri", "model.base", "data.train"]


def test_an_address_without_a_bucket_and_an_unknown_builtin_are_refused(check: Check) -> None:
    code, checks = check("--set", "data.validation=s3://", "--set", "model.base=s3://b/m")
    assert code == 1 and "cannot be a bucket's name" in found(checks, "addresses")[0][1]
    code, checks = check("--set", "model.base=builtin:gpt")
    assert code == 1 and "no such builtin" in found(checks, "addresses")[0][1]


def test_a_namespace_that_is_not_there_ends_the_checks(check: Check) -> None:
    code, checks = check("--namespace", "elsewhere")
    assert code == 1
    assert found(checks, "namespace") == [("fail", "elsewhere does not exist")]
    assert checks[-1]["subject"] == "namespace"


def test_a_namespace_on_its_way_out_fails(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.put(cluster_object("v1", "Namespace", NAMESPACE, status={"phase": "Terminating"}))
    assert found(check()[1], "namespace") == [("fail", "kubeflow is Terminating")]


def test_kfp_for_one_user_runs_in_its_own_namespace_whatever_ours_is(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_NAMESPACE", "ours")
    assert found(check()[1], "namespace") == [("pass", "kubeflow")]


def test_an_account_that_is_not_there_fails(check: Check) -> None:
    code, checks = check("--service-account", "nobody")
    assert code == 1
    assert found(checks, "service account") == [("fail", "nobody does not exist in kubeflow")]


def test_steps_need_to_report_results(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.put(role("pipeline-runner", [("argoproj.io", ["workflowtaskresults"], ["create"])]))
    code, checks = check()
    assert code == 1
    message = "pipeline-runner may not patch workflowtaskresults.argoproj.io, get configmaps/kfp-launcher"
    assert found(checks, "rights of steps") == [("fail", message)]


def test_several_nodes_need_the_trainer_its_runtime_and_the_rights(check: Check, kubernetes: KubernetesServer) -> None:
    several = ("--set", "hardware.nodes=2")
    code, checks = check(*several)
    assert code == 1
    assert "trainer.kubeflow.org/v1alpha1 is not served" in found(checks, "trainer")[0][1]
    kubernetes.objects.kinds.extend(TRAINER)
    code, checks = check(*several)
    assert found(checks, "trainer")[1] == ("fail", "there is no ClusterTrainingRuntime torch-distributed")
    lacking = found(checks, "rights of steps")[0][1]
    assert "create/get/delete trainjobs.trainer.kubeflow.org" in lacking and "get pods/log" in lacking
    kubernetes.put(
        cluster_object("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime", "torch-distributed"),
        role(
            "jobs",
            [
                ("trainer.kubeflow.org", ["trainjobs"], ["create", "get", "delete"]),
                ("", ["pods"], ["list"]),
                ("", ["pods/log"], ["get"]),
            ],
        ),
        binding("jobs", "jobs", "pipeline-runner"),
    )
    assert wrong(check(*several)[1]) == []


def test_one_node_asks_for_no_trainer(check: Check) -> None:
    assert found(check()[1], "trainer") == []


def test_a_secret_must_have_the_named_keys_with_something_in_them(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.put(secret("spin-storage", {"S3_ENDPOINT": SECRET, "AWS_ACCESS_KEY_ID": "", "other": SECRET}))
    code, checks = check()
    assert code == 1
    message = "spin-storage has no AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; its keys: S3_ENDPOINT, other"
    assert found(checks, "storage secret") == [("fail", message)]


def test_the_secret_and_its_keys_may_have_other_names(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.put(secret("mlpipeline-minio-artifact", {"accesskey": SECRET, "secretkey": SECRET}))
    names = 'cluster.storage_env={AWS_ACCESS_KEY_ID = "accesskey", AWS_SECRET_ACCESS_KEY = "secretkey"}'
    code, checks = check("--set", "cluster.storage_secret=mlpipeline-minio-artifact", "--set", names)
    assert code == 0
    assert found(checks, "storage secret") == [("pass", "mlpipeline-minio-artifact has accesskey, secretkey")]


def test_no_secret_is_needed_where_pods_have_an_identity(check: Check, kubernetes: KubernetesServer) -> None:
    code, checks = check("--set", "cluster.storage_secret=")
    assert (code, [one for one, _ in found(checks, "storage secret")]) == (0, ["pass"])
    assert not any("/secrets/" in request for request in kubernetes.requests)


def test_the_hubs_secret_is_looked_for_where_one_is_named(check: Check, kubernetes: KubernetesServer) -> None:
    code, checks = check("--set", "cluster.hub_secret=hub")
    assert code == 1 and found(checks, "hub secret") == [("fail", "hub does not exist in kubeflow")]
    kubernetes.put(secret("hub", {"HF_TOKEN": SECRET}))
    assert check("--set", "cluster.hub_secret=hub")[0] == 0


def test_the_registrys_secret_must_be_of_its_type(check: Check, kubernetes: KubernetesServer) -> None:
    named = ("--set", "cluster.image_pull_secret=registry")
    assert found(check(*named)[1], "image pull secret") == [("fail", "registry does not exist in kubeflow")]
    kubernetes.put(secret("registry", {".dockerconfigjson": SECRET}))
    assert "has the type 'Opaque'" in found(check(*named)[1], "image pull secret")[0][1]
    kubernetes.put(secret("registry", {"other": SECRET}, kind="kubernetes.io/dockerconfigjson"))
    assert found(check(*named)[1], "image pull secret") == [("fail", "registry has no .dockerconfigjson")]
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
        "training.global_batch_size=32",
    )
    code, checks = check(*asks)
    assert code == 1
    verdict, message = found(checks, "nodes")[-1]
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
    assert code == 1 and f"1 of 2: taint {GPU}=present:NoSchedule" in found(checks, "nodes")[-1][1]
    bears = f'placement.tolerations=[{{key = "{GPU}", operator = "Exists"}}]'
    assert check(*asks, "--set", bears)[0] == 0


def test_shards_that_must_wait_are_a_warning_and_nodes_of_one_training_are_not(
    check: Check, kubernetes: KubernetesServer
) -> None:
    kubernetes.objects.kinds.extend(TRAINER)
    code, checks = check("--set", "generation.shards=5")  # 8 cores for pods of 4
    assert code == 0
    assert ("warn", "generate (4 cpu, 16 GiB memory): 5 at once, room for 2; the others wait") in found(checks, "nodes")
    code, checks = check("--set", "hardware.nodes=4", "--set", "training.global_batch_size=16")
    assert "needs 4 pods at once, room for 2" in found(checks, "nodes")[-1][1]


def test_where_nodes_are_added_on_demand_too_few_are_a_warning(check: Check) -> None:
    code, checks = check("--set", f"placement.accelerator={GPU}", "--autoscaled")
    assert code == 0
    assert [one for one, _ in found(checks, "nodes")] == ["pass", "warn", "warn", "warn"]


def claim(mode: str, phase: str, **spec: Any) -> dict[str, Any]:
    fields = {"spec": {"accessModes": [mode], **spec}, "status": {"phase": phase}}
    return in_namespace("v1", "PersistentVolumeClaim", "cache", **fields)


def test_the_model_cache_must_be_claimed_and_shared(check: Check, kubernetes: KubernetesServer) -> None:
    named = ("--set", "cluster.model_cache_claim=cache")
    assert found(check(*named)[1], "model cache") == [("fail", "the claim cache does not exist in kubeflow")]
    for mode, verdict in (("ReadWriteMany", "pass"), ("ReadWriteOnce", "warn"), ("ReadWriteOncePod", "fail")):
        kubernetes.put(claim(mode, "Bound"))
        code, checks = check(*named)
        assert [one for one, _ in found(checks, "model cache")] == [verdict]
        assert code == (verdict == "fail")
    kubernetes.put(claim("ReadWriteMany", "Lost"))
    assert found(check(*named)[1], "model cache") == [("fail", "the volume of cache is lost")]


def test_an_unbound_claim_needs_a_class_that_exists(check: Check, kubernetes: KubernetesServer) -> None:
    named = ("--set", "cluster.model_cache_claim=cache")
    kubernetes.put(claim("ReadWriteMany", "Pending"))
    assert (
        "names no storage class and none is the default; there are: none"
        in found(check(*named)[1], "model cache")[0][1]
    )
    lazy = cluster_object("storage.k8s.io/v1", "StorageClass", "lazy", volumeBindingMode="WaitForFirstConsumer")
    kubernetes.put(lazy)
    kubernetes.put(claim("ReadWriteMany", "Pending", storageClassName="quick"))
    message = "cache needs the storage class quick; there are: lazy"
    assert found(check(*named)[1], "model cache")[0] == ("fail", message)
    lazy["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    kubernetes.put(lazy)
    kubernetes.put(claim("ReadWriteMany", "Pending"))
    assert check(*named)[0] == 0
    kubernetes.put(cluster_object("storage.k8s.io/v1", "StorageClass", "quick", volumeBindingMode="Immediate"))
    kubernetes.put(claim("ReadWriteMany", "Pending", storageClassName="quick"))
    assert found(check(*named)[1], "model cache")[0] == ("warn", "cache waits for a volume of quick")


def test_what_we_may_not_look_at_is_a_warning_that_says_so(
    check: Check, kubernetes: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes.users["nobodys"] = User("nobody")
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.write_kubeconfig(tmp_path / "nobody", "nobodys")))
    code, checks = check("--set", "cluster.model_cache_claim=cache")
    assert code == 0
    warnings = {one["subject"] for one in checks if one["verdict"] == "warn"} - {"storage"}
    assert warnings == {"namespace", "service account", "rights of steps", "storage secret", "nodes", "model cache"}
    assert "403 Forbidden" in found(checks, "nodes")[0][1]


def test_a_kubernetes_in_trouble_fails_what_it_does_not_answer(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.script = lambda request: 500 if "/nodes" in request else None
    code, checks = check()
    assert code == 1
    assert found(checks, "nodes") == [("fail", "the nodes: 500 Internal Server Error: said the test")]


def test_with_several_users_the_namespace_must_be_named_and_our_own_rights_count(
    check: Check, kfp: Kfp, kubernetes: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp.health["multi_user"] = True
    code, checks = check()
    assert code == 1 and "none of their namespaces is named" in found(checks, "namespace")[0][1]
    kubernetes.put(in_namespace("v1", "ServiceAccount", "default-editor"))
    kubernetes.put(binding("default-editor", "pipeline-runner", "default-editor"))
    assert wrong(check("--namespace", NAMESPACE)[1]) == []
    kubernetes.users["ci"] = service_account(NAMESPACE, "ci")
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.write_kubeconfig(tmp_path / "ci", "ci")))
    code, checks = check("--namespace", NAMESPACE)
    assert code == 1
    assert "we may not create/get/list pipelines.pipelines.kubeflow.org" in found(checks, "our rights")[0][1]


def test_storage_is_tried_from_here_where_there_are_keys(
    check: Check, s3: S3Server, kubernetes: KubernetesServer
) -> None:
    code, checks = check(run_uri=f"s3://{BUCKET}/preflight")
    assert code == 0
    assert [one for one, _ in found(checks, "storage")] == ["pass"]
    code, checks = check(run_uri="s3://no-such-bucket/x")
    assert code == 1
    assert [one for one, _ in found(checks, "storage")] == ["fail"]


def test_without_keys_storage_is_not_tried_and_says_so(check: Check) -> None:
    code, checks = check()
    assert code == 0
    assert found(checks, "storage")[0][0] == "warn" and "was not tried from here" in found(checks, "storage")[0][1]
