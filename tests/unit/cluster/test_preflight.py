"""`spin-pipeline preflight`: the command, both API servers, addresses and storage, over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from spin_components.errors import ConfigError
from spin_components.runtime.kubernetes_api import connect_kubernetes
from spin_pipeline.cli import main
from support.checks import Check, findings, problems
from support.kubernetes_server import KubernetesServer
from support.s3_server import BUCKET, S3Server, free_port
from support.scene import NAMESPACE, Kfp


def test_a_ready_cluster_passes(check: Check) -> None:
    code, checks = check()
    assert code == 0
    assert problems(checks) == []
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


def test_the_text_output_has_one_line_a_check_and_a_summary(
    check: Check, health: Kfp, kubernetes: KubernetesServer, capsys: pytest.CaptureFixture[str]
) -> None:
    kubernetes.objects.delete(kubernetes.objects.kinds[4], NAMESPACE, "spin-storage")
    code = main(["preflight", "--config", "tiny", "--run-uri", "s3://b/x", "--endpoint", health.endpoint])
    text = capsys.readouterr().out
    assert code == 1
    assert "pass  pipelines: KFP 2.17.2, for one user, at http://127.0.0.1" in text
    assert "fail  storage secret: spin-storage does not exist in kubeflow\n      kubectl create secret generic" in text
    assert text.splitlines()[-1].startswith("not ready: ")
    assert "\x1b" not in text  # no colours without a terminal


@pytest.mark.parametrize(
    ("tag", "verdict"),
    [("2.16.0", "pass"), ("2.17.9", "pass"), ("2.14.3", "fail"), ("2.18.0", "fail"), ("unknown", "warn")],
)
def test_an_unsupported_version_of_kfp_fails(check: Check, health: Kfp, tag: str, verdict: str) -> None:
    health.health["tag_name"] = tag
    code, checks = check()
    assert [one for one, _ in findings(checks, "pipelines")] == [verdict]
    assert code == (verdict == "fail")


def test_a_response_that_is_not_from_kfp_fails(check: Check, health: Kfp) -> None:
    health.health = {"hello": "world"}
    assert "which is not what KFP says" in findings(check()[1], "pipelines")[0][1]


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refusal_by_kfp_fails_with_its_status(check: Check, health: Kfp, status: int) -> None:
    health.status = status
    code, checks = check()
    assert code == 1
    assert f"{status}" in findings(checks, "pipelines")[0][1]
    assert findings(checks, "nodes")  # the other checks are still run


def test_an_unreachable_kfp_fails(check: Check) -> None:
    code, checks = check("--endpoint", f"http://127.0.0.1:{free_port()}")
    assert code == 1
    message = findings(checks, "pipelines")[0][1]
    assert "(NewConnectionError: Failed to establish a new connection: [Errno 111] Connection refused)" in message


def test_the_token_is_sent_to_kfp_only(check: Check, health: Kfp, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("the-token\n", "utf-8")
    assert check("--token-file", str(tmp_path / "token"))[0] == 0  # Kubernetes accepts only its own token
    assert health.tokens == ["Bearer the-token"]


def test_an_unreachable_kubernetes_api_ends_the_checks(check: Check, kubernetes: KubernetesServer) -> None:
    kubernetes.script = lambda request: 0
    code, checks = check()
    assert code == 1
    assert [one for one, _ in findings(checks, "kubernetes")] == ["fail"]
    assert checks[-1]["subject"] == "kubernetes"


@pytest.mark.parametrize(("version", "verdict"), [("v1.29.4", "pass"), ("v1.33.1+k3s1", "pass"), ("v1.28.0", "warn")])
def test_a_kubernetes_server_that_was_not_tested_is_a_warning(
    check: Check, kubernetes: KubernetesServer, version: str, verdict: str
) -> None:
    kubernetes.version = version
    code, checks = check()
    assert (code, [one for one, _ in findings(checks, "kubernetes")]) == (0, [verdict])


def test_an_invalid_token_and_a_missing_right_have_different_messages(
    check: Check, kubernetes: KubernetesServer, tmp_path: Path
) -> None:
    kubernetes.users.clear()
    code, checks = check()
    assert code == 1
    assert "401 Unauthorized" in findings(checks, "kubernetes")[0][1]


def test_without_a_kubeconfig_the_exit_code_is_2(
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


def test_a_pod_without_a_token_is_an_error() -> None:
    environment = {"KUBECONFIG": "/nowhere", "KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(ConfigError, match="this pod has no token for the Kubernetes API"):
        connect_kubernetes(environment=environment)


def test_a_wrong_setting_is_refused_before_any_request(kubernetes: KubernetesServer, health: Kfp) -> None:
    command = ["preflight", "--config", "tiny", "--set", "placement.gpu=1", "--endpoint", health.endpoint]
    assert main(command) == 2
    assert kubernetes.requests == [] and health.tokens == []


def test_folders_of_this_machine_are_refused(check: Check) -> None:
    code, checks = check("--set", "model.base=models/x", "--set", "data.train=d.jsonl", run_uri="runs/x")
    assert code == 1
    messages = [message for _, message in findings(checks, "addresses")]
    assert [message.partition(" = ")[0] for message in messages] == ["run.uri", "model.base", "data.train"]


def test_an_address_without_a_bucket_and_an_unknown_builtin_are_refused(check: Check) -> None:
    code, checks = check("--set", "data.validation=s3://", "--set", "model.base=s3://b/m")
    assert code == 1 and "is not a valid bucket name" in findings(checks, "addresses")[0][1]
    code, checks = check("--set", "model.base=builtin:gpt")
    assert code == 1 and "no such builtin" in findings(checks, "addresses")[0][1]


def test_storage_is_tested_from_here_if_there_are_keys(
    check: Check, s3: S3Server, kubernetes: KubernetesServer
) -> None:
    code, checks = check(run_uri=f"s3://{BUCKET}/preflight")
    assert code == 0
    assert [one for one, _ in findings(checks, "storage")] == ["pass"]
    code, checks = check(run_uri="s3://no-such-bucket/x")
    assert code == 1
    assert [one for one, _ in findings(checks, "storage")] == ["fail"]


def test_without_keys_storage_is_not_tested_which_is_a_warning(check: Check) -> None:
    code, checks = check()
    assert code == 0
    assert (
        findings(checks, "storage")[0][0] == "warn" and "was not tried from here" in findings(checks, "storage")[0][1]
    )
