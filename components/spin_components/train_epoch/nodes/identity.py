"""Identity of a step's pod, from the service account token that Kubernetes mounts into it."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path

from spin_components.errors import ConfigError

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
