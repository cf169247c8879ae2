"""Objects of a cluster that is ready for the tiny configuration; tests remove or change some."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import yaml

from support.built import MANIFESTS
from support.kubernetes_objects import Object
from support.kubernetes_server import KubernetesServer

NAMESPACE = "kubeflow"
SECRET = "a-value-that-must-not-leak"


def ready(server: KubernetesServer) -> None:
    """Add the objects of KFP and of manifests/README.md."""
    server.put(
        cluster_object("v1", "Namespace", NAMESPACE),
        in_namespace("v1", "ServiceAccount", "pipeline-runner"),
        role(
            "pipeline-runner",
            [("argoproj.io", ["workflowtaskresults"], ["create", "patch"]), ("", ["configmaps"], ["get", "list"])],
        ),
        binding("pipeline-runner", "pipeline-runner", "pipeline-runner"),
        secret("spin-storage", dict.fromkeys(("S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), SECRET)),
        node("worker", cpu="8", memory="32Gi"),
    )


def cluster_object(api_version: str, kind: str, name: str, **fields: Any) -> Object:
    """A cluster-scoped object."""
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **fields}


def in_namespace(api_version: str, kind: str, name: str, **fields: Any) -> Object:
    """An object in the namespace of the runs."""
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


def secret(name: str, values: dict[str, str], kind: str = "Opaque") -> Object:
    """A Secret as the API returns it."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return in_namespace("v1", "Secret", name, type=kind, data=data)


def role(name: str, rules: list[tuple[str, list[str], list[str]]]) -> Object:
    """A Role; each rule is an API group, resources and verbs."""
    items = [{"apiGroups": [group], "resources": what, "verbs": verbs} for group, what, verbs in rules]
    return in_namespace("rbac.authorization.k8s.io/v1", "Role", name, rules=items)


def binding(name: str, role_name: str, account: str) -> Object:
    """A RoleBinding of a service account."""
    group = "rbac.authorization.k8s.io"
    return in_namespace(
        f"{group}/v1",
        "RoleBinding",
        name,
        roleRef={"apiGroup": group, "kind": "Role", "name": role_name},
        subjects=[{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
    )


def training_runtime() -> Object:
    """The ClusterTrainingRuntime of manifests/training."""
    runtime: Object = yaml.safe_load((MANIFESTS / "training/training-runtime.yaml").read_text("utf-8"))
    return runtime


def node(
    name: str,
    *,
    labels: dict[str, str] | None = None,
    taints: list[dict[str, str]] | None = None,
    is_ready: bool = True,
    **allocatable: str,
) -> Object:
    """A Node with allocatable resources; `gpu` stands for nvidia.com/gpu."""
    quantities = {"nvidia.com/gpu" if key == "gpu" else key: value for key, value in allocatable.items()}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": {"taints": taints or []},
        "status": {
            "allocatable": quantities,
            "conditions": [{"type": "Ready", "status": "True" if is_ready else "False"}],
        },
    }


class Kfp(HTTPServer):
    """KFP's health endpoint.

    Attributes:
        health: the JSON value that it returns.
        status: the HTTP status that it returns.
        tokens: the authorization header of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Health)
        self.health: dict[str, Any] = {"commit_sha": "0" * 40, "tag_name": "2.17.2", "multi_user": False}
        self.status = 200
        self.tokens: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def kfp_health() -> Iterator[Kfp]:
    """Serve until the end of the block."""
    with Kfp() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="kfp")
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Health(BaseHTTPRequestHandler):
    server: Kfp

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests."""

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers.get("authorization", ""))
        is_known = self.path == "/apis/v2beta1/healthz"
        content = json.dumps(self.server.health if is_known else {"error": "no such path"}).encode()
        self.send_response(self.server.status if is_known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
