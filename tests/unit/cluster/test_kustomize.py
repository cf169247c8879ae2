"""The manifests: built by kubectl, and checked against Kubernetes' schemas and the needs of the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kfp import compiler

from spin_components import __version__
from spin_components.settings.attempt import JUDGE_KEY
from spin_components.training.nodes.train_job import STEP_LABEL
from spin_pipeline.cli import main
from spin_pipeline.cluster.preflight.inputs import check_addresses
from spin_pipeline.config import load_settings
from spin_pipeline.dag import build as build_pipeline
from spin_pipeline.deploy.placement import TRACKING_KEYS
from support.built import MANIFESTS, Objects, of_kind, only
from support.kfp_server import KfpServer

KUBERNETES = ("1.29", "1.30", "1.31", "1.32", "1.33")


def examples() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / "secrets.example.yaml").read_text("utf-8")))


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_validates_strictly_against_its_schema(built: Objects, version: str) -> None:
    different = {json.dumps(item, sort_keys=True): item for items in built.values() for item in items}
    assert len(different) == 14 + 2 + 2 + 2 + 1  # each overlay patches two objects of the base
    for item in different.values():
        assert kubernetes_validate.validate(item, version, strict=True) == version


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_example_secrets_have_empty_values(version: str) -> None:
    for item in examples():
        kubernetes_validate.validate(item, version, strict=True)
        assert "data" not in item and set(item["stringData"].values()) == {""}


def test_a_misspelt_field_is_detected(built: Objects) -> None:
    claim = only(built["base"], "PersistentVolumeClaim")
    misspelt = {**claim, "spec": {**claim["spec"], "accessMode": ["ReadWriteOnce"]}}
    for version in KUBERNETES:
        with pytest.raises(kubernetes_validate.ValidationError, match="accessMode"):
            kubernetes_validate.validate(misspelt, version, strict=True)


def test_no_kustomization_contains_a_secret(built: Objects) -> None:
    assert not [item for items in built.values() for item in of_kind(items, "Secret")]


def test_everything_is_in_the_namespace_that_kfp_runs_in(built: Objects) -> None:
    whole = ("Namespace", "ClusterRole", "ClusterRoleBinding")
    for items in built.values():
        assert {item["metadata"].get("namespace") for item in items if item["kind"] not in whole} <= {"kubeflow"}
        for item in of_kind(items, *whole):
            assert "namespace" not in item["metadata"]


def test_no_rule_has_a_wildcard_and_secrets_are_named(built: Objects) -> None:
    rules = [rule for item in of_kind(built["base"], "Role", "ClusterRole") for rule in item["rules"]]
    assert len(rules) > 10
    for rule in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if "secrets" in rule["resources"]:
            assert rule["resourceNames"] == ["mlpipeline-minio-artifact"] and rule["verbs"] == ["get"]


def test_the_network_policy_selects_the_pods_of_steps(built: Objects, tmp_path: Path) -> None:
    label = dict([STEP_LABEL])
    policies = [item["spec"] for item in of_kind(built["base"], "NetworkPolicy")]
    assert [policy["podSelector"] for policy in policies] == [{"matchLabels": label}] * 2
    configuration = load_settings("tiny")
    path = tmp_path / "spin.yaml"
    compiler.Compiler().compile(build_pipeline(configuration, configuration.cluster), str(path))
    _, platform = yaml.safe_load_all(path.read_text("utf-8"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert len(executors) >= 6
    assert all(label.items() <= one["podMetadata"]["labels"].items() for one in executors.values())
    assert label.items() <= only(built["schedule"], "Job")["spec"]["template"]["metadata"]["labels"].items()


def test_the_network_policy_allows_kfp_storage_and_training(built: Objects) -> None:
    policies = of_kind(built["base"], "NetworkPolicy")
    rules = [rule for policy in policies for rule in policy["spec"]["egress"]]
    reached = {
        (_peer(rule), port["protocol"], port["port"]) for rule in rules for port in rule.get("ports", [{}]) if port
    }
    for needed in (
        ("anywhere", "UDP", 53),
        ("kubeflow: app=ml-pipeline", "TCP", 8887),
        ("kubeflow: app=ml-pipeline", "TCP", 8888),
        ("kubeflow: component=metadata-grpc-server", "TCP", 8080),
        ("kubeflow: app in seaweedfs, minio", "TCP", 8333),  # port of the pod; the service's port is 9000
        ("outside", "TCP", 443),
        ("outside", "TCP", 6443),
        ("any namespace", "TCP", 9000),
    ):
        assert needed in reached
    assert all(
        "to" in rule or "ports" in rule for rule in rules
    )  # a rule without peers and ports would allow everything


def _peer(rule: dict[str, Any]) -> str:
    if "to" not in rule:
        return "anywhere"
    blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
    if blocks:
        assert {"0.0.0.0/0", "::/0"} == {block["cidr"] for block in blocks}
        assert "169.254.0.0/16" in blocks[0]["except"], "where a cloud answers with the node's credentials"
        return "outside"
    (peer,) = rule["to"]
    if peer == {"namespaceSelector": {}}:
        return "any namespace"
    pods = peer["podSelector"]
    labels = [f"{key}={value}" for key, value in pods.get("matchLabels", {}).items()]
    labels += [f"{one['key']} in {', '.join(one['values'])}" for one in pods.get("matchExpressions", [])]
    namespace = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name", "here")
    return f"{namespace}: {' and '.join(labels)}"


@pytest.mark.parametrize("folder", ["schedule", "model-cache"])
def test_jobs_are_restricted_and_use_this_version(built: Objects, folder: str) -> None:
    pod = only(built[folder], "Job")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == f"spin-pipelines/cpu:{__version__}"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == load_settings("tiny").cluster.run_as_user
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False


def test_the_model_cache_is_handed_to_the_group_that_steps_run_as(built: Objects) -> None:
    pod = only(built["model-cache"], "Job")["spec"]["template"]["spec"]
    assert pod["securityContext"]["fsGroup"] == load_settings("tiny").cluster.run_as_user
    claim = only(built["base"], "PersistentVolumeClaim")["metadata"]["name"]
    assert pod["volumes"] == [{"name": "cache", "persistentVolumeClaim": {"claimName": claim}}]


def test_repeating_the_schedules_job_leaves_one_schedule(
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


@pytest.mark.parametrize("folder", ["overlays/dev", "schedule"])
def test_the_configurations_are_for_a_cluster(folder: str) -> None:
    configuration = load_settings(str(MANIFESTS / folder / "run.toml"))
    assert [finding.verdict for finding in check_addresses(configuration)] == ["pass"]
    claim = configuration.cluster.model_cache_claim
    assert claim in ("", "spin-model-cache")


def test_the_example_secrets_are_those_that_preflight_checks() -> None:
    storage, hub, trackers, judge, registry = examples()
    cluster = load_settings("tiny").cluster
    assert storage["metadata"]["name"] == cluster.storage_secret
    assert set(storage["stringData"]) == set(cluster.storage_env.values())
    assert list(hub["stringData"]) == ["HF_TOKEN"]
    assert set(trackers["stringData"]) <= set(TRACKING_KEYS)
    assert list(judge["stringData"]) == [JUDGE_KEY]
    assert registry["type"] == "kubernetes.io/dockerconfigjson"
