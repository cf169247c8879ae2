"""The Kubernetes API over HTTP: requests and answers as JSON, and as lines of a log.

The `kubernetes` package reads the connection from a kubeconfig file or a pod's service account, renews its token and
verifies the server's certificate; its models of objects are not used.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import kubernetes.client
import tenacity
import yaml
from kubernetes import config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError, MaxRetryError

from spin_components.errors import ClusterError, ConfigError

logger = logging.getLogger(__name__)

NOT_FOUND, CONFLICT = 404, 409
_TIMEOUT_S = (5.0, 30.0)
"""To connect, and to answer."""
_RECONNECTS = 1


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a request.

    Attributes:
        status: HTTP status; 0 where nothing answered.
        body: the JSON object, where the status is 2xx.
        error: why there is no body, in a few words.
    """

    status: int
    body: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def is_ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_refused(self) -> bool:
        """Whether the caller is unknown to the server, or lacks the right."""
        return self.status in (401, 403)

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed later: nothing answered, the server is busy, or it failed."""
        return not self.status or self.status == 429 or self.status >= 500


class KubernetesApi:
    """Requests to one cluster.

    Args:
        client: a `kubernetes.client.ApiClient`.
        patience_s: seconds for which a request is repeated while its failure may pass; 0 for one attempt.
    """

    def __init__(self, client: Any, patience_s: float = 0.0) -> None:
        self._client, self.patience_s = client, patience_s

    @property
    def host(self) -> str:
        """The server's address."""
        return str(self._client.configuration.host)

    def get(self, path: str, **query: str) -> Response:
        """Read an object or a list.

        Args:
            path: below the server's address, its parts quoted; see `path_of`.
            query: parameters.
        """
        return self._request("GET", path, query)

    def post(self, path: str, body: dict[str, Any]) -> Response:
        """Send an object."""
        return self._request("POST", path, {}, body)

    def patch(self, path: str, body: dict[str, Any]) -> Response:
        """Change an object: a JSON merge patch (RFC 7396)."""
        return self._request("PATCH", path, {}, body)

    def delete(self, path: str, **query: str) -> Response:
        """Delete an object."""
        return self._request("DELETE", path, query)

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """Yield the lines of a log, with `follow="true"` as they are written.

        Raises:
            ClusterError: the log cannot be read, or the connection broke.
        """
        timeout_s = (_TIMEOUT_S[0], None) if query.get("follow") else _TIMEOUT_S
        try:
            rest = b""
            for chunk in self._send("GET", path, query, None, timeout_s).stream(1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode("utf-8", errors="replace") for line in lines)
            if rest:
                yield rest.decode("utf-8", errors="replace")
        except ApiException as error:
            raise ClusterError(f"{self.host}{path}: {_explained(error)}") from error
        except (HTTPError, OSError) as error:
            raise ClusterError(f"{self.host}{path}: {reason_of(error)}") from error

    def _request(
        self, method: str, path: str, query: Mapping[str, str], body: dict[str, Any] | None = None
    ) -> Response:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda response: response.is_passing),
            wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=30),
            stop=tenacity.stop_after_delay(self.patience_s) if self.patience_s else tenacity.stop_after_attempt(1),
            before_sleep=lambda state: logger.warning("%s %s did not succeed; trying again", method, path),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        response: Response = retrying(self._attempt, method, path, query, body)
        return response

    def _attempt(self, method: str, path: str, query: Mapping[str, str], body: dict[str, Any] | None) -> Response:
        try:
            response = self._send(method, path, query, body, _TIMEOUT_S)
            return Response(response.status, _object(response.data))
        except ApiException as error:
            return Response(int(error.status or 0), error=_explained(error))
        except (HTTPError, OSError) as error:
            return Response(0, error=reason_of(error))
        except ValueError:
            return Response(0, error="the answer is not JSON; is this the address of the API?")

    def _send(
        self, method: str, path: str, query: Mapping[str, str], body: dict[str, Any] | None, timeout_s: tuple[Any, Any]
    ) -> Any:
        return self._client.call_api(
            f"{path}?{urlencode(query)}" if query else path,
            method,
            header_params={
                "Accept": "application/json, */*",
                "Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json",
            },
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=timeout_s,
        )


def path_of(*parts: str) -> str:
    """A path of the API, each part quoted."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def connect_kubernetes(
    context: str = "", environment: Mapping[str, str] | None = None, patience_s: float = 0.0
) -> KubernetesApi:
    """The cluster of a kubeconfig file, or the one that this process is a pod of; nothing is contacted.

    Args:
        context: of the kubeconfig file; empty for the current one.
        environment: `os.environ` by default; `KUBECONFIG` names the file, `KUBERNETES_SERVICE_HOST` is set in a pod.
        patience_s: see `KubernetesApi`.

    Raises:
        ConfigError: neither can be used.
    """
    environment = os.environ if environment is None else environment
    files = environment.get("KUBECONFIG", "") or str(Path.home() / ".kube" / "config")
    if any(Path(file).expanduser().is_file() for file in files.split(os.pathsep) if file):
        configuration = _from_files(files, context)
    elif environment.get("KUBERNETES_SERVICE_HOST"):
        configuration = _from_pod()
    else:
        raise ConfigError(f"no kubeconfig at {files}, and this is not a pod; set KUBECONFIG to the cluster's file")
    configuration.retries = _RECONNECTS
    return KubernetesApi(kubernetes.client.ApiClient(configuration), patience_s)


def reason_of(error: BaseException) -> str:
    """Why a request failed, without the pool, the URL and the connection object."""
    reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    return re.sub(r"^<?HTTPS?Connection.*?[)>]: ", "", str(reason)) or type(reason).__name__


def _from_files(files: str, context: str) -> Any:
    configuration = kubernetes.client.Configuration()
    try:
        config.load_kube_config(files, context or None, configuration, persist_config=False)
    except config.ConfigException as error:
        raise ConfigError(f"{files} cannot be used: {error}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:  # it checks little
        raise ConfigError(
            f"{files} is not a kubeconfig ({type(error).__name__}); set KUBECONFIG to the right one"
        ) from error
    return configuration


def _from_pod() -> Any:
    configuration = kubernetes.client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException as error:
        raise ConfigError(
            f"this pod has no token for the Kubernetes API ({error}); give it a service account, or set KUBECONFIG"
        ) from error
    return configuration


def _object(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _explained(error: ApiException) -> str:
    """Status and reason, and the message where the body is a Kubernetes `Status`."""
    text = f"{error.status} {error.reason}" if error.status else str(error.reason)
    try:
        message = json.loads(error.body or "").get("message") or ""
    except (ValueError, AttributeError):
        message = ""
    return f"{text}: {message}" if message else text
