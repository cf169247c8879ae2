"""The endpoint and credentials of the KFP API, from flags, the environment, or the pod of this process."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from spin_components.errors import ConfigError

ENDPOINTS = ("KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT")
TOKEN = "KFP_TOKEN"
TOKEN_FILES = ("KFP_TOKEN_FILE", "KF_PIPELINES_SA_TOKEN_PATH")
NAMESPACE = "KFP_NAMESPACE"
CA_CERT = "KFP_CA_CERT"
UI_ENDPOINT = "KF_PIPELINES_UI_ENDPOINT"

_IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
# The token that KFP has projected into a pod for itself. The pod's general token is not sent: it opens the cluster's
# own API, and KFP would refuse it anyway, being meant for another audience.
_POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class Target:
    """A KFP API, with credentials.

    Attributes:
        endpoint: `http(s)://host[:port][/path]`, without a trailing `/`.
        token: from the environment; empty where it is in a file, or none is needed.
        token_file: read for each request, so that a renewed token is used.
        ca_cert: file of CA certificates to trust; empty for the system's.
        namespace: of the user, for a multi-user KFP.
    """

    endpoint: str
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    ca_cert: str = ""
    namespace: str = ""

    @property
    def ui(self) -> str:
        """Address of the KFP UI."""
        return (os.environ.get(UI_ENDPOINT) or self.endpoint).rstrip("/")


def find_target(
    endpoint: str | None = None, token_file: str | None = None, ca_cert: str | None = None, namespace: str | None = None
) -> Target:
    """Find the KFP API: each part from its flag, else from the environment, else from the pod.

    Raises:
        ConfigError: no endpoint is named, it cannot be one, or a file cannot be read.
    """
    found = endpoint or _first(ENDPOINTS)
    if not found and os.environ.get("KUBERNETES_SERVICE_HOST"):
        found = _IN_CLUSTER
    if not found:
        raise ConfigError(
            f"no KFP endpoint: name it with --endpoint URL or in {ENDPOINTS[0]}, for example http://127.0.0.1:8888 "
            "after `kubectl port-forward -n kubeflow svc/ml-pipeline 8888`"
        )
    path, token = _token(token_file)
    certificates = ca_cert or os.environ.get(CA_CERT, "")
    if certificates and not Path(certificates).is_file():
        raise ConfigError(f"the CA certificates {certificates!r} are not a file; correct --ca-cert or {CA_CERT}")
    return Target(_checked(found), token, path, certificates, namespace or _first((NAMESPACE,)) or _pod_namespace())


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be read ({type(error).__name__}); see --token-file") from error
    if not token:
        raise ConfigError(f"the token file {path} is empty; see --token-file")
    return token


def _token(token_file: str | None) -> tuple[Path | None, str]:
    if not token_file and (token := os.environ.get(TOKEN, "").strip()):
        return None, token
    named = token_file or _first(TOKEN_FILES)
    if not named and not _POD_TOKEN.is_file():
        return None, ""
    path = Path(named) if named else _POD_TOKEN
    read_token(path)
    return path, ""


def _checked(endpoint: str) -> str:
    text = endpoint.partition("#")[0].rstrip("/")
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ConfigError(f"the KFP endpoint holds a name or a password; leave it out and use --token-file or {TOKEN}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"the KFP endpoint {endpoint!r} is no address; expected http://host:port or https://host")
    return text


def _first(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _pod_namespace() -> str:
    return _POD_NAMESPACE.read_text("utf-8").strip() if _POD_NAMESPACE.is_file() else ""
