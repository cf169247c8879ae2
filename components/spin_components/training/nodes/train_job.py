"""The manifest of a Kubeflow Trainer `TrainJob`: several pods that train one epoch together.

Fields as in `trainer.kubeflow.org/v1alpha1` of Kubeflow Trainer 2.2 and later, which has `runtimePatches`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from spin_components.errors import ConfigError
from spin_components.settings.attempt import HardwareSettings, PlacementSettings

FOLDER = "SPIN_SERVICE_ACCOUNT_FOLDER"


_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True, slots=True)
class Identity:
    """A pod's namespace, account and name.

    Attributes:
        namespace: of the pod.
        service_account: that it runs as.
        pod: its name; empty where the token is not bound to a pod.
        pod_uid: its uid, likewise.
    """

    namespace: str
    service_account: str
    pod: str
    pod_uid: str


def own_identity() -> Identity:
    """Read the mounted token's claims (RFC 7519, `kubernetes.io` as Kubernetes writes it).

    Raises:
        ConfigError: this is not a pod, or its token is not mounted.
    """
    folder = Path(os.environ.get(FOLDER, _FOLDER))
    try:
        namespace = (folder / "namespace").read_text("ascii").strip()
        payload = (folder / "token").read_text("ascii").split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["kubernetes.io"]
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ConfigError(
            f"hardware.nodes is above 1, which needs a pod with access to Kubernetes, but {folder} has no "
            f"service account token ({error}); run it on a cluster with the token mounted, or set hardware.nodes = 1"
        ) from error
    pod = claims.get("pod", {})
    return Identity(namespace, claims["serviceaccount"]["name"], pod.get("name", ""), pod.get("uid", ""))


GROUP, VERSION, PLURAL, KIND = "trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob"


MANAGER = "spin-pipelines.io/train-epoch"
"""Who patches the runtime: Trainer requires a path with a domain before it."""


DIGEST = "spin-pipelines/digest"
"""Annotation with the digest of a job's specification; a job with an equal one may be adopted."""


STEP_LABEL = ("app.kubernetes.io/part-of", "spin-pipelines")
"""Label by which manifests/base/network-policy.yaml selects the pods of steps and of their jobs."""


_NODE = "node"


_SHM = "spin-shm"


_LONGEST = 60_000
"""Characters of an argument; Trainer 2.2 takes 65,536."""


class JobTemplate(BaseModel):
    """Settings of the pods that are fixed when the pipeline is compiled.

    Attributes:
        image: of the pods.
        runtime: name of the ClusterTrainingRuntime.
        shm_gib: shared memory of a pod.
        run_as_user: user and group; 0 leaves it to the image.
        image_pull_secret: name of a secret, or empty.
        timeout_s: 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    runtime: str
    shm_gib: int
    run_as_user: int
    image_pull_secret: str
    timeout_s: int


class PodFragments(BaseModel):
    """The task's own placement, from KFP's `TaskConfig`: fragments of a pod's specification."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    affinity: dict[str, Any] | None = None
    tolerations: list[dict[str, Any]] | None = None
    node_selector: dict[str, str] | None = None
    env: list[dict[str, Any]] | None = None
    volumes: list[dict[str, Any]] | None = None
    volume_mounts: list[dict[str, Any]] | None = None
    resources: dict[str, Any] | None = None


def owner_of(identity: Identity) -> dict[str, str] | None:
    """A pod as an owner reference; None where its uid is not known."""
    if not identity.pod_uid:
        return None
    return {"apiVersion": "v1", "kind": "Pod", "name": identity.pod, "uid": identity.pod_uid}


def name_of(run_uri: str, iteration: int, epoch: int) -> str:
    """The job's name: the same for every attempt, so that a retried step finds its job."""
    return f"spin-{hashlib.sha256(run_uri.encode()).hexdigest()[:12]}-{iteration}-{epoch}"


def body_of(
    name: str,
    identity: Identity,
    argument: str,
    *,
    hardware: HardwareSettings,
    template: JobTemplate,
    pod: PodFragments,
    placement: PlacementSettings | None = None,
) -> dict[str, Any]:
    """Build the manifest.

    Args:
        name: see `name_of`.
        identity: of the step's pod, which owns the job: Kubernetes deletes the job with it. The job's pods run as its
            account.
        argument: of each pod's program, as JSON; the program joins its parts.
        hardware: nodes, and processes on each.
        template: fixed settings.
        pod: the task's placement.
        placement: local disk, further devices and capability, which KFP has no fields for.
    """
    placement = placement or PlacementSettings()
    patch = _patch(_pod(template, pod, identity, is_locking=placement.ipc_lock))
    spec = {
        "runtimeRef": {"name": template.runtime},
        "trainer": {
            "image": template.image,
            "command": ["python3", "-m", "spin_components.training.nodes.pod"],
            "args": [argument[start : start + _LONGEST] for start in range(0, len(argument), _LONGEST)],
            "numNodes": hardware.nodes,
            "numProcPerNode": hardware.ranks,
            "resourcesPerNode": _resources(pod, placement),
            "env": pod.env or [],
        },
        "runtimePatches": [
            {"manager": MANAGER, "trainingRuntimeSpec": patch},
        ],
    }
    if template.timeout_s:
        spec["activeDeadlineSeconds"] = template.timeout_s
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": identity.namespace,
        "labels": {"app.kubernetes.io/name": "spin-pipelines", "app.kubernetes.io/component": "train-epoch"},
        "annotations": {DIGEST: hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()},
    }
    if owner := owner_of(identity):
        metadata["ownerReferences"] = [owner]
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": metadata, "spec": spec}


def _patch(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod's specification and label, as a patch of the runtime's JobSet."""
    template = {"metadata": {"labels": dict([STEP_LABEL])}, "spec": pod}
    job = {"name": _NODE, "template": {"spec": {"template": template}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}


def _resources(pod: PodFragments, placement: PlacementSettings) -> dict[str, Any]:
    """The task's resources with those that KFP has no fields for, as requests and as limits."""
    resources = pod.resources or {}
    more = {name: str(number) for name, number in placement.devices.items()}
    if placement.ephemeral_storage:
        more["ephemeral-storage"] = placement.ephemeral_storage
    if not more:
        return resources
    return {**resources, **{kind: {**(resources.get(kind) or {}), **more} for kind in ("limits", "requests")}}


def _pod(template: JobTemplate, pod: PodFragments, identity: Identity, *, is_locking: bool) -> dict[str, Any]:
    shared = {"name": _SHM, "emptyDir": {"medium": "Memory", "sizeLimit": f"{template.shm_gib}Gi"}}
    capabilities = {"drop": ["ALL"], **({"add": ["IPC_LOCK"]} if is_locking else {})}
    container = {
        "name": _NODE,
        "volumeMounts": [*(pod.volume_mounts or []), {"name": _SHM, "mountPath": "/dev/shm"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": capabilities},
    }
    spec: dict[str, Any] = {
        "volumes": [*(pod.volumes or []), shared],
        "containers": [container],
        "serviceAccountName": identity.service_account,
        "securityContext": _security(template.run_as_user),
    }
    placed: dict[str, Any] = {
        "nodeSelector": pod.node_selector,
        "tolerations": pod.tolerations,
        "affinity": pod.affinity,
        "imagePullSecrets": [{"name": template.image_pull_secret}] if template.image_pull_secret else None,
    }
    return {**spec, **{name: value for name, value in placed.items() if value}}


def _security(user: int) -> dict[str, Any]:
    """A pod's security context by Kubernetes' "restricted" Pod Security Standard."""
    identity = {"runAsUser": user, "runAsGroup": user, "fsGroup": user} if user else {}
    return {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **identity}
