"""`spin-pipeline preflight`: the command, both servers, addresses and storage, over real HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubernetes_server import KubernetesServer
from s3_server import BUCKET, S3Server, free_port
from spin_components.errors import ConfigError
from spin_components.kubernetes_api import connect_kubernetes
from spin_pipeline.cli import main
from unit.cluster.checks import Check, found, wrong
from unit.cluster.scene import (
    NAMESPACE,
    Kfp,
)


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
        "memory",
    }
    assert all(one["remedy"] for one in checks if one["verdict"] != "pass")


def test_a_person_reads_a_line_a_check_and_a_sum(
    check: Check, health: Kfp, kubernetes: KubernetesServer, capsys: pytest.CaptureFixture[str]
) -> None:
    kubernetes.objects.delete(kubernetes.objects.kinds[4], NAMESPACE, "spin-storage")
    code = main(["preflight", "--config", "tiny", "--run-uri", "s3://b/x", "--endpoint", health.endpoint])
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
def test_kfp_must_be_of_a_version_that_takes_the_pipeline(check: Check, health: Kfp, tag: str, verdict: str) -> None:
    health.says["tag_name"] = tag
    code, checks = check()
    assert [one for one, _ in found(checks, "pipelines")] == [verdict]
    assert code == (verdict == "fail")


def test_a_page_that_is_not_kfps_is_told_from_kfp(check: Check, health: Kfp) -> None:
    health.says = {"hello": "world"}
    assert "which is not what KFP says" in found(check()[1], "pipelines")[0][1]


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_kfp_that_refuses_fails_with_its_status(check: Check, health: Kfp, status: int) -> None:
    health.status = status
    code, checks = check()
    assert code == 1
    assert f"{status}" in found(checks, "pipelines")[0][1]
    assert found(checks, "nodes")  # the other checks are made all the same


def test_nobody_at_kfps_address_fails(check: Check) -> None:
    code, checks = check("--endpoint", f"http://127.0.0.1:{free_port()}")
    assert code == 1
    message = found(checks, "pipelines")[0][1]
    assert "(NewConnectionError: Failed to establish a new connection: [Errno 111] Connection refused)" in message


def test_kfp_gets_the_token_and_nobody_else(check: Check, health: Kfp, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("the-token\n", "utf-8")
    assert check("--token-file", str(tmp_path / "token"))[0] == 0  # Kubernetes knows only its own token
    assert health.tokens == ["Bearer the-token"]


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
        ("- a\n", "is not a kubeconfig"),
        ("a: [", "is not a kubeconfig"),
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


def test_a_wrong_setting_is_refused_before_anything_is_asked(kubernetes: KubernetesServer, health: Kfp) -> None:
    command = ["preflight", "--config", "tiny", "--set", "placement.gpu=1", "--endpoint", health.endpoint]
    assert main(command) == 2
    assert kubernetes.requests == [] and health.tokens == []


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
