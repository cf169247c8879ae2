"""The manifests: built by kubectl, held against Kubernetes' schemas, and against what the code needs of them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kfp import compiler

from kfp_server import KfpServer
from kubectl import build, unpack_kubectl
from kubernetes_objects import TRAINER
from kubernetes_rights import Deed, User, may, service_account
from kubernetes_server import KubernetesServer, kubernetes_server
from spin_components import __version__
from spin_components.train_epoch.nodes.train_job import STEP_LABEL
from spin_pipeline.cli import _parser, main
from spin_pipeline.cluster.preflight.accounts import STEP_RIGHTS, TRAIN_JOB_RIGHTS, check_step_rights
from spin_pipeline.cluster.preflight.checks import Cluster, check_all
from spin_pipeline.cluster.preflight.connections import connect_kubernetes, connect_pipelines
from spin_pipeline.cluster.preflight.inputs import check_addresses
from spin_pipeline.cluster.target import Target
from spin_pipeline.config import load_settings
from spin_pipeline.dag import build as build_pipeline
from unit.cluster.scene import SECRET, cluster_object, in_namespace, kfp_health, node, secret

ROOT = Path(__file__).parents[3]
MANIFESTS = ROOT / "manifests"
FOLDERS = ("base", "overlays/dev", "overlays/gpu", "schedule")
KUBERNETES = ("1.29", "1.30", "1.31", "1.32", "1.33")
README = (MANIFESTS / "README.md").read_text("utf-8")

Objects = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_kubectl(tmp_path_factory.mktemp("kubectl"))


@pytest.fixture(scope="module")
def built(kubectl: Path) -> Objects:
    """The objects of each kustomization."""
    return {folder: build(kubectl, MANIFESTS / folder) for folder in FOLDERS}


def of_kind(items: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [item for item in items if item["kind"] in kinds]


def only(items: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [item for item in of_kind(items, kind) if item["metadata"]["name"] == (name or item["metadata"]["name"])]
    return found


def examples() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / "secrets.example.yaml").read_text("utf-8")))


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_strictly_of_its_schema(built: Objects, version: str) -> None:
    different = {json.dumps(item, sort_keys=True): item for items in built.values() for item in items}
    assert len(different) == 12 + 2 + 2 + 2  # each overlay changes two of the base
    for item in different.values():
        assert kubernetes_validate.validate(item, version, strict=True) == version


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_secrets_shapes_are_secrets_without_a_value(version: str) -> None:
    for item in examples():
        kubernetes_validate.validate(item, version, strict=True)
        assert "data" not in item and set(item["stringData"].values()) == {""}


def test_a_misspelt_field_would_be_found(built: Objects) -> None:
    claim = only(built["base"], "PersistentVolumeClaim")
    misspelt = {**claim, "spec": {**claim["spec"], "accessMode": ["ReadWriteOnce"]}}
    for version in KUBERNETES:
        with pytest.raises(kubernetes_validate.ValidationError, match="accessMode"):
            kubernetes_validate.validate(misspelt, version, strict=True)


def test_no_kustomization_holds_a_secret(built: Objects) -> None:
    assert not [item for items in built.values() for item in of_kind(items, "Secret")]


def test_everything_is_in_the_namespace_that_kfp_runs_in(built: Objects) -> None:
    whole = ("Namespace", "ClusterRole", "ClusterRoleBinding")
    for items in built.values():
        assert {item["metadata"].get("namespace") for item in items if item["kind"] not in whole} <= {"kubeflow"}
        for item in of_kind(items, *whole):
            assert "namespace" not in item["metadata"]


def test_no_rule_has_a_star_and_secrets_are_named(built: Objects) -> None:
    rules = [rule for item in of_kind(built["base"], "Role", "ClusterRole") for rule in item["rules"]]
    assert len(rules) > 10
    for rule in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if "secrets" in rule["resources"]:
            assert rule["resourceNames"] == ["mlpipeline-minio-artifact"] and rule["verbs"] == ["get"]


@pytest.fixture
def applied(built: Objects) -> Iterator[KubernetesServer]:
    """A cluster to which overlays/dev was applied, with KFP's own account and no role of KFP's."""
    with kubernetes_server() as server:
        server.put(*built["overlays/dev"], in_namespace("v1", "ServiceAccount", "pipeline-runner"))
        yield server


@pytest.mark.parametrize("account", ["pipeline-runner", "spin-runner"])
def test_the_pods_accounts_have_the_rights_that_steps_need(applied: KubernetesServer, account: str) -> None:
    user = service_account("kubeflow", account)
    for right in (*STEP_RIGHTS, *TRAIN_JOB_RIGHTS):
        for verb in right.verbs:
            deed = Deed(verb, right.group, right.resource, "kubeflow", right.name)
            assert may(applied.objects, user, deed), (account, str(right))


@pytest.mark.parametrize(
    "deed",
    [
        Deed("get", "", "secrets", "kubeflow", "spin-storage"),
        Deed("list", "", "secrets", "kubeflow"),
        Deed("create", "", "pods", "kubeflow"),
        Deed("create", "", "pods/exec", "kubeflow"),
        Deed("delete", "", "pods", "kubeflow"),
        Deed("get", "", "configmaps", "kubeflow", "another"),
        Deed("create", "rbac.authorization.k8s.io", "rolebindings", "kubeflow"),
        Deed("create", "trainer.kubeflow.org", "trainjobs", "default"),
        Deed("list", "", "nodes"),
    ],
)
def test_the_pods_account_has_no_others(applied: KubernetesServer, deed: Deed) -> None:
    assert not may(applied.objects, service_account("kubeflow", "spin-runner"), deed)


def test_the_submitters_account_reaches_no_secret_and_starts_no_pod(applied: KubernetesServer) -> None:
    user = service_account("kubeflow", "spin-submitter")
    assert may(applied.objects, user, Deed("create", "pipelines.kubeflow.org", "runs", "kubeflow"))
    for deed in (
        Deed("get", "", "secrets", "kubeflow", "spin-storage"),
        Deed("get", "", "secrets", "kubeflow", "mlpipeline-minio-artifact"),
        Deed("create", "", "pods", "kubeflow"),
        Deed("create", "trainer.kubeflow.org", "trainjobs", "kubeflow"),
        Deed("create", "pipelines.kubeflow.org", "runs", "default"),
    ):
        assert not may(applied.objects, user, deed), deed


def test_preflight_as_the_submitter_lacks_nothing_but_a_look_into_the_secret(
    applied: KubernetesServer, built: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    applied.objects.kinds.extend(TRAINER)
    applied.put(
        cluster_object("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime", "torch-distributed"),
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
        connections = connect_kubernetes(environment={"KUBECONFIG": str(path)}), connect_pipelines(Target(kfp.endpoint))
        found = [finding for finding in check_all(configuration, Cluster(*connections)) if finding.verdict != "pass"]
    assert [(one.subject, str(one.verdict)) for one in found] == [
        ("storage", "warn"),
        ("storage secret", "warn"),
        ("model cache", "warn"),  # ReadWriteOnce, on a cluster of one node
    ]


def test_without_the_manifests_preflight_names_what_is_lacking(tmp_path: Path) -> None:
    with kubernetes_server() as bare:
        kubernetes = connect_kubernetes(environment={"KUBECONFIG": str(bare.write_kubeconfig(tmp_path / "kubeconfig"))})
        (finding,) = check_step_rights(kubernetes, "kubeflow", "pipeline-runner", with_jobs=True)
    assert finding.verdict == "fail" and "manifests/overlays/dev" in finding.remedy


def test_the_network_policy_is_about_the_pods_that_steps_are(built: Objects, tmp_path: Path) -> None:
    label = dict([STEP_LABEL])
    policy = only(built["base"], "NetworkPolicy")["spec"]
    assert policy["podSelector"] == {"matchLabels": label}
    configuration = load_settings("tiny")
    path = tmp_path / "spin.yaml"
    compiler.Compiler().compile(build_pipeline(configuration, configuration.cluster), str(path))
    _, platform = yaml.safe_load_all(path.read_text("utf-8"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert len(executors) >= 6
    assert all(one["podMetadata"]["labels"] == label for one in executors.values())
    assert label.items() <= only(built["schedule"], "Job")["spec"]["template"]["metadata"]["labels"].items()


def test_steps_may_reach_what_kfp_storage_and_training_need(built: Objects) -> None:
    rules = only(built["base"], "NetworkPolicy")["spec"]["egress"]
    reached = {
        (_peer(rule), port["protocol"], port["port"]) for rule in rules for port in rule.get("ports", [{}]) if port
    }
    for needed in (
        ("anywhere", "UDP", 53),
        ("kubeflow: app=ml-pipeline", "TCP", 8887),
        ("kubeflow: app=ml-pipeline", "TCP", 8888),
        ("kubeflow: component=metadata-grpc-server", "TCP", 8080),
        ("kubeflow: app in seaweedfs, minio", "TCP", 8333),  # of the pod, behind the service's 9000
        ("anywhere", "TCP", 443),
        ("anywhere", "TCP", 6443),
    ):
        assert needed in reached
    assert all("to" in rule or "ports" in rule for rule in rules)  # a rule without both would allow everything


def _peer(rule: dict[str, Any]) -> str:
    if "to" not in rule:
        return "anywhere"
    (peer,) = rule["to"]
    pods = peer["podSelector"]
    labels = [f"{key}={value}" for key, value in pods.get("matchLabels", {}).items()]
    labels += [f"{one['key']} in {', '.join(one['values'])}" for one in pods.get("matchExpressions", [])]
    place = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name", "here")
    return f"{place}: {' and '.join(labels)}"


def test_our_own_pod_is_restricted_and_of_this_version(built: Objects) -> None:
    pod = only(built["schedule"], "Job")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == f"spin-pipelines/cpu:{__version__}"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == load_settings("tiny").cluster.run_as_user
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False


def test_what_the_schedules_job_types_sets_one_schedule_however_often(
    built: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    pod = only(built["schedule"], "Job")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config_map = only(built["schedule"], "ConfigMap", pod["volumes"][0]["configMap"]["name"])
    (tmp_path / "run.toml").write_text(config_map["data"]["run.toml"], "utf-8")
    words = [*container["command"], *container["args"]]
    typed = [word.replace(container["volumeMounts"][0]["mountPath"], str(tmp_path)) for word in words]
    server = KfpServer()
    try:
        here = [word.replace("http://ml-pipeline.kubeflow:8888", server.endpoint) for word in typed]
        assert here != typed
        assert [main(here[1:]), main(here[1:])] == [0, 0]
        (schedule,) = server.schedules
    finally:
        server.close()
    assert schedule["display_name"] == "weekly"
    assert schedule["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1"


@pytest.mark.parametrize("folder", ["overlays/dev", "overlays/gpu", "schedule"])
def test_the_configurations_are_for_a_cluster(folder: str) -> None:
    configuration = load_settings(str(MANIFESTS / folder / "run.toml"))
    assert [finding.verdict for finding in check_addresses(configuration)] == ["pass"]
    claim = configuration.cluster.model_cache_claim
    assert claim in ("", "spin-model-cache")


def test_the_example_secrets_are_the_ones_that_are_looked_for() -> None:
    storage, hub, registry = examples()
    cluster = load_settings("tiny").cluster
    assert storage["metadata"]["name"] == cluster.storage_secret
    assert set(storage["stringData"]) == set(cluster.storage_env.values())
    assert list(hub["stringData"]) == ["HF_TOKEN"]
    assert registry["type"] == "kubernetes.io/dockerconfigjson"


def commands(word: str) -> list[list[str]]:
    """The commands of the guide that begin so, in words; a line that ends in \\ goes on."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip().startswith(f"{word} ")]


def test_every_spin_pipeline_command_of_the_guide_is_one() -> None:
    found = commands("spin-pipeline")
    assert {command[1] for command in found} >= {"preflight", "submit", "schedule"}
    for command in found:
        _parser().parse_args(command[1:])


def test_every_file_and_target_that_the_guide_names_exists() -> None:
    for name in re.findall(r"(?<![/\w])manifests/[\w./-]*\w", README):
        assert (ROOT / name).exists() or "/alice/" in name, name
    for command in commands("make"):
        arguments = [word if "=" not in word else f"{word.partition('=')[0]}=x" for word in command[1:]]
        done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_guides_overlay_for_a_users_namespace_moves_everything(kubectl: Path, tmp_path: Path) -> None:
    (text,) = re.findall(r"^ *```yaml\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)
    folder = tmp_path / "manifests" / "overlays" / "alice"
    folder.mkdir(parents=True)
    (tmp_path / "manifests" / "base").symlink_to(MANIFESTS / "base")
    (folder / "kustomization.yaml").write_text(text, "utf-8")
    items = build(kubectl, folder)
    assert not of_kind(items, "Namespace")  # the profile's own
    assert {item["metadata"].get("namespace", "alice") for item in items} == {"alice"}
    bindings = of_kind(items, "RoleBinding", "ClusterRoleBinding")
    assert {subject["namespace"] for item in bindings for subject in item["subjects"]} == {"alice"}
    with kubernetes_server() as server:
        server.put(*items)
        for right in (*STEP_RIGHTS, *TRAIN_JOB_RIGHTS):
            deed = Deed(right.verbs[0], right.group, right.resource, "alice", right.name)
            assert may(server.objects, service_account("alice", "default-editor"), deed)
            assert not may(server.objects, service_account("alice", "pipeline-runner"), deed)
        assert may(server.objects, service_account("alice", "spin-submitter"), Deed("list", "", "nodes"))
        assert not may(server.objects, User("somebody"), Deed("list", "", "nodes"))
