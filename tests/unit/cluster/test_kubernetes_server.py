"""The Kubernetes API server of the tests, used through the real client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config, watch

from support.kubernetes_objects import TRAINER
from support.kubernetes_rights import service_account
from support.kubernetes_server import KubernetesServer, kubernetes_server
from support.scene import NAMESPACE, binding, in_namespace, role

TRAIN_JOBS = ("trainer.kubeflow.org", "v1alpha1", NAMESPACE, "trainjobs")


@pytest.fixture
def server() -> Iterator[KubernetesServer]:
    with kubernetes_server() as running:
        running.objects.kinds.extend(TRAINER)
        yield running


def api_client(server: KubernetesServer, folder: Path, **token: str) -> Any:
    """The real client, configured by a kubeconfig file."""
    return config.new_client_from_config(str(server.write_kubeconfig(folder / "kubeconfig", **token)))


def train_job(name: str, **fields: Any) -> dict[str, Any]:
    return in_namespace("trainer.kubeflow.org/v1alpha1", "TrainJob", name, **fields)


def test_a_custom_object_is_created_and_deleted_with_its_pods(server: KubernetesServer, tmp_path: Path) -> None:
    connection = api_client(server, tmp_path)
    jobs, core = client.CustomObjectsApi(connection), client.CoreV1Api(connection)
    made = jobs.create_namespaced_custom_object(*TRAIN_JOBS, train_job("a", spec={"suspend": True}))
    with pytest.raises(client.ApiException) as again:
        jobs.create_namespaced_custom_object(*TRAIN_JOBS, train_job("a"))
    assert (again.value.status, again.value.reason) == (409, "Conflict")
    owner = {"apiVersion": made["apiVersion"], "kind": "TrainJob", "name": "a", "uid": made["metadata"]["uid"]}
    server.put(in_namespace("v1", "Pod", "a-0", status={"phase": "Running"}))
    pod = server.objects.find("pods", "a-0", NAMESPACE)
    assert pod is not None
    pod["metadata"] |= {"labels": {"job": "a"}, "ownerReferences": [owner]}
    server.put(pod)
    assert [one.metadata.name for one in core.list_namespaced_pod(NAMESPACE, label_selector="job=a").items] == ["a-0"]
    assert core.list_namespaced_pod(NAMESPACE, label_selector="job!=a").items == []
    changed = jobs.patch_namespaced_custom_object(*TRAIN_JOBS, "a", {"spec": {"suspend": None, "managedBy": "x"}})
    assert changed["spec"] == {"managedBy": "x"}
    jobs.delete_namespaced_custom_object(*TRAIN_JOBS, "a")
    assert core.list_namespaced_pod(NAMESPACE).items == []
    with pytest.raises(client.ApiException) as caught:
        jobs.get_namespaced_custom_object(*TRAIN_JOBS, "a")
    assert caught.value.status == 404


def test_a_watch_reports_changes_in_order(server: KubernetesServer, tmp_path: Path) -> None:
    jobs = client.CustomObjectsApi(api_client(server, tmp_path))
    server.put(train_job("a"))

    def act() -> None:
        server.put(train_job("a", status={"conditions": [{"type": "Complete", "status": "True"}]}))
        jobs.delete_namespaced_custom_object(*TRAIN_JOBS, "a")

    seen = []
    for event in watch.Watch().stream(jobs.list_namespaced_custom_object, *TRAIN_JOBS, timeout_seconds=30):
        seen.append(event["type"])
        if seen == ["ADDED"]:
            threading.Thread(target=act).start()
        if event["type"] == "DELETED":
            break
    assert seen == ["ADDED", "MODIFIED", "DELETED"]


def test_a_log_is_followed_to_the_end_of_its_pod(server: KubernetesServer, tmp_path: Path) -> None:
    core = client.CoreV1Api(api_client(server, tmp_path))
    server.put(in_namespace("v1", "Pod", "a", status={"phase": "Running"}))
    server.log("a", "one", "two", namespace=NAMESPACE)

    lines = []
    for line in watch.Watch().stream(core.read_namespaced_pod_log, "a", NAMESPACE):
        lines.append(line)
        if line == "two":
            server.log("a", "three", namespace=NAMESPACE)
            server.put(in_namespace("v1", "Pod", "a", status={"phase": "Succeeded"}))
    assert lines == ["one", "two", "three"]
    assert core.read_namespaced_pod_log("a", NAMESPACE, tail_lines=2) == "two\nthree\n"
    assert core.read_namespaced_pod_log("a", NAMESPACE, tail_lines=1, timestamps=True).endswith("Z three\n")


def test_requests_need_the_rights_of_a_role(server: KubernetesServer, tmp_path: Path) -> None:
    server.users["runner-token"] = service_account(NAMESPACE, "runner")
    jobs = client.CustomObjectsApi(api_client(server, tmp_path, token="runner-token"))
    server.put(
        role("jobs", [("trainer.kubeflow.org", ["trainjobs"], ["create", "get"])]), binding("jobs", "jobs", "runner")
    )
    jobs.create_namespaced_custom_object(*TRAIN_JOBS, train_job("a"))
    with pytest.raises(client.ApiException) as refused:
        jobs.delete_namespaced_custom_object(*TRAIN_JOBS, "a")
    assert refused.value.status == 403
    assert "cannot delete resource" in refused.value.body
    server.users.clear()
    with pytest.raises(client.ApiException) as unknown:
        jobs.get_namespaced_custom_object(*TRAIN_JOBS, "a")
    assert unknown.value.status == 401


def test_unsupported_requests_and_injected_errors_fail(server: KubernetesServer, tmp_path: Path) -> None:
    core = client.CoreV1Api(api_client(server, tmp_path))
    server.script = lambda request: 500 if request.startswith("GET /api/v1/nodes") else None
    with pytest.raises(client.ApiException) as broken:
        core.list_node()
    assert broken.value.status == 500
    with pytest.raises(client.ApiException) as absent:
        client.CustomObjectsApi(core.api_client).list_cluster_custom_object("batch.volcano.sh", "v1", "jobs")
    assert absent.value.status == 404
