"""Fixtures of the cluster tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_pipeline.cli import main
from support.built import FOLDERS, MANIFESTS, Objects
from support.checks import Check
from support.kubectl import build, unpack_kubectl
from support.kubernetes_server import KubernetesServer, kubernetes_server
from support.s3_server import BUCKET
from support.scene import SECRET, Kfp, kfp_health, ready

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
    """A Kubernetes server with all required objects; the environment has its kubeconfig."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPIN_CACHE_DIR", str(tmp_path / "cache"))
    with kubernetes_server() as server:
        ready(server)
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "kubeconfig")))
        yield server


@pytest.fixture
def health() -> Iterator[Kfp]:
    """A KFP server with only a health endpoint."""
    with kfp_health() as server:
        yield server


@pytest.fixture
def check(kubernetes: KubernetesServer, health: Kfp, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs preflight with `--json`; returns its exit code and findings, and checks that no secret is printed."""

    def run(*arguments: str, run_uri: str = f"s3://{BUCKET}/runs/x") -> tuple[int, list[dict[str, str]]]:
        command = ["preflight", "--config", "tiny", "--run-uri", run_uri, "--endpoint", health.endpoint, "--json"]
        code = main([*command, *arguments])
        printed = capsys.readouterr()
        assert SECRET not in printed.out + printed.err
        value = json.loads(printed.out)
        assert value["ready"] is (code == 0)
        return code, value["checks"]

    return run


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pinned kubectl binary."""
    return unpack_kubectl(tmp_path_factory.mktemp("kubectl"))


@pytest.fixture(scope="session")
def built(kubectl: Path) -> Objects:
    """The objects of each kustomization."""
    return {folder: build(kubectl, MANIFESTS / folder) for folder in FOLDERS}
