from __future__ import annotations

from typing import Any

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from pydantic import ValidationError

from spin_components.settings.attempt import HardwareSettings, PlacementSettings
from spin_components.training.nodes.train_job import DIGEST, Identity, JobTemplate, PodFragments, body_of, name_of

IDENTITY = Identity("team", "pipeline-runner", "step-1", "1-2-3")
TEMPLATE = JobTemplate(
    image="spin/train:1",
    runtime="torch-distributed",
    shm_gib=16,
    run_as_user=1000,
    image_pull_secret="pull",
    timeout_s=600,
)
POD = PodFragments(
    tolerations=[{"key": "gpu", "operator": "Exists"}],
    node_selector={"pool": "gpu"},
    affinity={"nodeAffinity": {}},
    env=[{"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {"name": "spin-storage", "key": "id"}}}],
    volumes=[{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}],
    volume_mounts=[{"name": "cache", "mountPath": "/var/cache/spin"}],
    resources={"limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "4"}},
)


def body(identity: Identity = IDENTITY, template: JobTemplate = TEMPLATE, pod: PodFragments = POD) -> dict[str, Any]:
    hardware = HardwareSettings(ranks=4, nodes=2)
    return body_of("spin-x-0-1", identity, "{}", hardware=hardware, template=template, pod=pod)


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == "node"
    pod: dict[str, Any] = replicated["template"]["spec"]["template"]["spec"]
    return pod


def test_the_job_has_the_tasks_resources_environment_and_places() -> None:
    job = body()
    trainer, pod = job["spec"]["trainer"], pod_of(job)
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert (trainer["resourcesPerNode"], trainer["env"]) == (POD.resources, POD.env)
    assert (pod["tolerations"], pod["nodeSelector"], pod["affinity"]) == (
        POD.tolerations,
        POD.node_selector,
        POD.affinity,
    )
    assert [volume["name"] for volume in pod["volumes"]] == ["cache", "spin-shm"]
    assert pod["volumes"][1]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert job["spec"]["activeDeadlineSeconds"] == 600


def test_its_pods_meet_the_restricted_pod_security_standard() -> None:
    pod = pod_of(body())
    identity = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **identity}
    (container,) = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod["serviceAccountName"] == "pipeline-runner"


def test_disk_devices_and_the_capability_for_rdma_are_added_to_its_pods() -> None:
    placement = PlacementSettings(ephemeral_storage="500Gi", devices={"rdma/hca": 1}, ipc_lock=True)
    job = body_of(
        "spin-x-0-1",
        IDENTITY,
        "{}",
        hardware=HardwareSettings(ranks=4, nodes=2),
        template=TEMPLATE,
        pod=POD,
        placement=placement,
    )
    more = {"rdma/hca": "1", "ephemeral-storage": "500Gi"}
    assert job["spec"]["trainer"]["resourcesPerNode"] == {
        "limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "4", **more},
        "requests": more,
    }
    (container,) = pod_of(job)["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    TrainerV1alpha1TrainJob.from_dict(job)


@pytest.mark.parametrize("devices", [{"rdma": 1}, {"rdma/hca": 0}])
def test_devices_are_resources_with_a_number(devices: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="a resource's name and a number of 1 or more"):
        PlacementSettings(devices=devices)


def test_it_belongs_to_the_steps_pod_where_that_is_known() -> None:
    assert body()["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "step-1", "uid": "1-2-3"}
    ]
    assert "ownerReferences" not in body(Identity("team", "pipeline-runner", "", ""))["metadata"]


def test_what_is_not_set_is_left_to_the_runtime() -> None:
    plain = TEMPLATE.model_copy(update={"run_as_user": 0, "image_pull_secret": "", "timeout_s": 0})
    job = body(template=plain, pod=PodFragments())
    assert not {"tolerations", "nodeSelector", "affinity", "imagePullSecrets"} & set(pod_of(job))
    assert "activeDeadlineSeconds" not in job["spec"]
    assert "runAsUser" not in pod_of(job)["securityContext"]


def test_a_job_that_says_the_same_has_the_same_digest() -> None:
    digests = [found["metadata"]["annotations"][DIGEST] for found in (body(), body(), body(pod=PodFragments()))]
    assert digests[0] == digests[1] != digests[2]


def test_its_name_is_that_of_the_epoch_and_fits_a_label() -> None:
    names = {name_of(uri, t, e) for uri in ("s3://b/one", "s3://b/two") for t in (0, 1) for e in (0, 1)}
    assert len(names) == 8
    assert all(len(f"{name}-node-0-31-abcde") <= 63 for name in names)


def test_the_digest_does_not_depend_on_the_pod_that_asks() -> None:
    # the pod of a retried step has another name; it must know its job again
    other = Identity("team", "pipeline-runner", "step-2", "4-5-6")
    assert body()["metadata"]["annotations"] == body(other)["metadata"]["annotations"]


def test_it_is_strictly_of_the_trainers_schema_and_its_pods_have_the_policys_label() -> None:
    job = body()
    assert TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job  # what a model does not know, it drops
    misspelt = {**job, "spec": {**job["spec"], "runtimePatch": []}}
    assert TrainerV1alpha1TrainJob.from_dict(misspelt).to_dict() != misspelt
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    labels = replicated["template"]["spec"]["template"]["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/part-of": "spin-pipelines"}


def test_it_passes_the_webhooks_rules() -> None:
    # a manager is a path with a domain; one argument has at most 65,536 characters
    argument = "x" * 150_001
    hardware = HardwareSettings(ranks=4, nodes=2)
    job = body_of("spin-x-0-1", IDENTITY, argument, hardware=hardware, template=TEMPLATE, pod=POD)
    assert [patch["manager"] for patch in job["spec"]["runtimePatches"]] == ["spin-pipelines.io/train-epoch"]
    parts = job["spec"]["trainer"]["args"]
    assert "".join(parts) == argument
    assert max(map(len, parts)) <= 65_536
