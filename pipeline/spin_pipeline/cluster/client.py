"""The client of the KFP API: requests, their retries, and refusals as errors that say what to do."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tenacity
import urllib3.exceptions

from spin_components.errors import ClusterAccessError, ClusterError, ConfigError
from spin_components.machine import seconds
from spin_components.runtime.kubernetes_api import reason_of
from spin_pipeline.cluster.target import Target, read_token

logger = logging.getLogger(__name__)

DEADLINE = "SPIN_KFP_DEADLINE_S"
"""Environment variable: seconds after which a request is given up; 120 by default."""

_TIMEOUT_S = (5.0, 60.0)
_UNREADABLE_TRIES = 3
_PAGE = 100
_ADVICE = {
    401: "the token is missing, wrong or has expired; name a file with a valid one with --token-file, or set KFP_TOKEN",
    403: "this account may not do that; check its role, and --namespace",
    404: "there is no such thing; check --endpoint, and what was named",
}


class _UnreadableError(Exception):
    """An answer that is not KFP's."""


@dataclass(frozen=True, slots=True)
class Health:
    """The version and features that KFP reports.

    Attributes:
        is_multi_user: runs execute in their user's namespace, else in KFP's own.
        version: as it was tagged; empty where it was built without a tag.
    """

    is_multi_user: bool
    version: str


class Api:
    """The KFP API; nothing is contacted before the first request.

    A request is repeated after time-outs, dropped connections, 5xx answers and throttling, with exponential back-off
    and jitter, until a deadline; other failures are final, and so is KFP's own error for a request that creates
    something: HTTP 500 with a gRPC code, by which it answers a pipeline that Argo cannot compile. A request that
    creates something may arrive twice: the caller looks for it by name when KFP answers that it exists.

    Attributes:
        target: the endpoint and its credentials.
        namespace: to name in requests: the user's where KFP serves several, else empty.
        client: `kfp.Client`; `call` takes the methods of its generated services (`runs`, `pipelines`, …).

    Raises (all methods):
        ClusterAccessError: KFP refuses, or what answers is no KFP.
        ClusterError: no useful answer within the deadline.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.namespace = ""
        self._deadline_s = seconds(DEADLINE, 120)
        self._was_let_in = False
        self.client = _client(target)
        self._http = self.client.runs.api_client

    def call(self, what: str, operation: Callable[..., Any], *arguments: Any, tries: int = 0, **named: Any) -> Any:
        """Make one request.

        Args:
            what: what it is for; errors begin with it.
            operation: a method of one of the client's generated services.
            tries: most attempts; 0 for as many as the deadline allows.
            arguments, named: of the operation.
        """
        import kfp_server_api

        deadline = tenacity.stop_before_delay(self._deadline_s)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_any(deadline, tenacity.stop_after_attempt(tries)) if tries else deadline,
            wait=tenacity.wait_random_exponential(multiplier=0.3, max=15),
            retry=self._may_mend,
            before_sleep=lambda state: self._note(what, state),
            reraise=True,
        )
        try:
            answer = retrying(self._ask, operation, arguments, named)
        except kfp_server_api.ApiException as error:
            if _is_busy(error.status) and not _is_refused_create(operation, error):
                raise self._gave_up(what, ": ".join(filter(None, (f"HTTP {error.status}", _said(error))))) from error
            raise self._refusal(what, error) from error
        except _UnreadableError as error:
            raise ClusterAccessError(
                f"{what}: what answers at {self.target.endpoint} is not the KFP API ({error}); check --endpoint (a "
                "login page needs a token: --token-file)"
            ) from error
        except urllib3.exceptions.HTTPError as error:
            if _is_tls(error):
                raise ClusterAccessError(
                    f"{what}: no secure connection to {self.target.endpoint} ({_in_short(error)}); name the server's "
                    "certificates with --ca-cert, or write http:// if it has none"
                ) from error
            raise self._gave_up(what, _in_short(error)) from error
        self._was_let_in = True
        return answer

    def health(self, tries: int = 0) -> Health:
        """The version and features that KFP reports; `tries` as for `call`."""
        self.call("reaching KFP", self.client.healthzs.healthz_service_get_healthz, tries=tries)
        health = json.loads(self._http.last_response.data)  # the generated model leaves the version out
        is_multi_user, tag = health.get("multi_user"), health.get("tag_name") or ""
        if not isinstance(is_multi_user, bool):
            raise ClusterAccessError(
                f"reaching KFP: {self.target.endpoint} answers, but its health is {str(health)[:100]}, which is not "
                "what KFP says; check --endpoint"
            )
        return Health(is_multi_user, "" if tag == "unknown" else str(tag))

    def pages(self, what: str, operation: Callable[..., Any], items: str, **named: Any) -> Iterator[Any]:
        """Yield the items of a listing, page by page; `items` names the list in its answers."""
        token = ""
        while True:
            page = self.call(what, operation, page_token=token, page_size=_PAGE, **named)
            yield from getattr(page, items) or []
            token = page.next_page_token or ""
            if not token:
                return

    def _ask(self, operation: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        try:
            answer = operation(*arguments, **named, _request_timeout=_TIMEOUT_S)
        except (AttributeError, TypeError, ValueError) as error:  # the generated client trips over bodies that are none
            raise _UnreadableError(f"{type(error).__name__} in its answer") from error
        response = self._http.last_response
        kind = response.getheader("content-type") or "of no type"
        if "json" not in kind or not _is_object(
            response.data
        ):  # the client makes an empty object of it, without a word
            raise _UnreadableError(f"its answer is {kind}")
        return answer

    def _may_mend(self, state: tenacity.RetryCallState) -> bool:
        import kfp_server_api

        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _UnreadableError):
            return state.attempt_number < _UNREADABLE_TRIES
        if isinstance(error, kfp_server_api.ApiException):
            if _is_refused_create(state.args[0], error):
                return False
            # a token that was good may be renewed in its file a little late
            return _is_busy(error.status) or (error.status == 401 and self._was_let_in and self._has_token_file)
        return isinstance(error, urllib3.exceptions.HTTPError) and not _is_tls(error)

    @property
    def _has_token_file(self) -> bool:
        return self.target.token_file is not None

    def _note(self, what: str, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error and (state.attempt_number in (1, 4, 8) or state.attempt_number % 16 == 0):
            logger.warning("%s: %s; trying again", what, _in_short(error))

    def _refusal(self, what: str, error: Any) -> ClusterAccessError:
        said = _said(error)
        advice = "; ".join(part for part in (said, _ADVICE.get(error.status, "")) if part)
        return ClusterAccessError(f"{what}: {self.target.endpoint} answers HTTP {error.status}: {advice}")

    def _gave_up(self, what: str, found: str) -> ClusterError:
        return ClusterError(
            f"{what}: no valid response from {self.target.endpoint} ({found}); check that KFP runs and --endpoint is "
            "right, then run the same command"
        )


def connect(target: Target) -> Api:
    """Connect to the API, with the namespace where it serves several.

    Raises:
        ClusterAccessError, ClusterError: it refuses, or does not answer.
        ConfigError: it serves several, and none is named.
    """
    api = Api(target)
    if api.health().is_multi_user:
        if not target.namespace:
            raise ConfigError(f"KFP at {target.endpoint} serves several namespaces; name yours with --namespace")
        api.namespace = target.namespace
    return api


def refused_with(error: ClusterAccessError) -> int:
    """The HTTP status of a refusal; 0 where there was none."""
    return int(getattr(error.__cause__, "status", 0) or 0)


def named(name: str) -> str:
    """KFP's filter for a display name."""
    predicate = {"operation": 1, "key": "display_name", "stringValue": name}  # 1: EQUALS
    return json.dumps({"predicates": [predicate]})


def _client(target: Target) -> Any:
    import kfp
    from kfp.client.token_credentials_base import TokenCredentialsBase

    class FileToken(TokenCredentialsBase):  # type: ignore[misc]  # kfp is untyped
        """Reads the token for each request."""

        def refresh_api_key_hook(self, config: Any) -> None:
            assert target.token_file is not None
            config.api_key["authorization"] = read_token(target.token_file)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "only works with Kubeflow Pipelines v2"
        return kfp.Client(
            host=target.endpoint,
            existing_token=target.token or None,
            credentials=FileToken() if target.token_file else None,
            ssl_ca_cert=target.ca_cert or None,
            namespace="unused",  # else the constructor asks the server, five times where it does not answer
        )


def _is_busy(status: int | None) -> bool:
    """Whether an HTTP status may pass: 5xx but 501, time-outs and throttling."""
    number = status or 0
    return (number >= 500 and number != 501) or number in (408, 429)


def _is_refused_create(operation: Callable[..., Any], error: Any) -> bool:
    """Whether KFP itself failed a request that creates something, which it would do again: HTTP 500 with a gRPC code.

    A gateway before KFP answers 500 without one. A read that fails like this is repeated: its database may be away.
    """
    name = getattr(operation, "__name__", "")
    return error.status == 500 and ("create" in name or "upload" in name) and bool(_body(error).get("code"))


def _is_tls(error: BaseException) -> bool:
    return isinstance(getattr(error, "reason", error), urllib3.exceptions.SSLError)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _said(error: Any) -> str:
    """The server's message, in one line."""
    body = _body(error)
    text = next((str(body[key]) for key in ("error_message", "message", "error") if body.get(key)), "")
    return " ".join(text.split())[:600]


def _body(error: Any) -> dict[str, Any]:
    """The JSON object of an error response; empty where it is none."""
    try:
        body = json.loads(error.body or "")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _in_short(error: BaseException) -> str:
    """An error in a few words, without the address of a connection object."""
    if (status := getattr(error, "status", None)) is not None:
        return f"HTTP {status}"
    cause = getattr(error, "reason", None) or error
    return f"{type(cause).__name__}: {reason_of(error)}"[:200]
