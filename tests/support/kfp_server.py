"""An HTTP server for KFP's v2beta1 API: its paths, fields, checks, pages and errors, with injected failures.

It stores objects and runs nothing: each request for a run returns the next of the states that a test lists. Fields
and errors are those of `backend/api/v2beta1` and of KFP's API server. Requests that KFP would refuse (an unknown field,
a name that is taken, a parameter that the pipeline does not have) are refused here too.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api
import yaml

Json = dict[str, Any]
_RECORDS = Path(__file__).parent / "records"
_BASE = "/apis/v2beta1/"
_KEYS = {
    "experiments": "experiment_id",
    "pipelines": "pipeline_id",
    "runs": "run_id",
    "recurringruns": "recurring_run_id",
}
_LISTS = {"recurringruns": "recurringRuns", "versions": "pipeline_versions"}
_MODELS = {
    "experiments": kfp_server_api.V2beta1Experiment,
    "pipelines": kfp_server_api.V2beta1Pipeline,
    "runs": kfp_server_api.V2beta1Run,
    "recurringruns": kfp_server_api.V2beta1RecurringRun,
}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "STRING": str,
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "STRUCT": dict,
    "LIST": list,
}


def recorded(name: str) -> Json:
    """A record of what a real server answered: `status` and `body` of a refusal, or parts of a run."""
    content: Json = json.loads((_RECORDS / f"{name}.json").read_text("utf-8"))
    return content


def recorded_tasks(name: str) -> list[Json]:
    """The `task_details` that a real server listed for a run: Argo's nodes, without errors and names of pods."""
    return list(recorded(name)["task_details"])


class _RefusedError(Exception):
    """An error response: HTTP status, gRPC code, message."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"code": code, "message": message, "details": []}

    @classmethod
    def recorded(cls, name: str) -> _RefusedError:
        """What a real server answered, from `records/`."""
        record = recorded(name)
        return cls(record["status"], record["body"]["code"], record["body"]["message"])


@dataclass
class Trouble:
    """A failure of some requests, before or after they are executed.

    Attributes:
        method, path: of the requests; `path` is a part of theirs.
        status: HTTP status of the response; 0 to drop the connection.
        times: number of requests to fail.
        after: execute the request, and lose only its response.
        delay_s: seconds before the response.
        content_type: of the body.
    """

    method: str
    path: str
    status: int = 0
    times: int = 1
    after: bool = False
    delay_s: float = 0.0
    body: bytes = b'{"error": "trouble", "code": 13, "message": "trouble"}'
    content_type: str = "application/json"


@dataclass
class Look:
    """State of a run at a request; `tasks` are the API's `task_details`."""

    state: str
    tasks: list[Json] = field(default_factory=list)
    error: str = ""


def task(name: str, state: str, **fields: Any) -> Json:
    """A task as the API returns it."""
    return {"task_id": f"pod-{name}", "display_name": name, "state": state, "start_time": _time(0), **fields}


class KfpServer:
    """Listens on a loopback port until it is closed.

    Attributes:
        looks: successive states of each new run, one a request; the last one stays.
        troubles: failures to inject.
        tokens: accepted tokens; empty to accept all.
        multi_user: whether requests must name a namespace.
        requests: method and path of each, in order.
        page_limit: largest number of entries of a page.
    """

    def __init__(self) -> None:
        self.looks = [Look("SUCCEEDED")]
        self.troubles: list[Trouble] = []
        self.tokens: set[str] = set()
        self.multi_user = False
        self.requests: list[tuple[str, str]] = []
        self.page_limit = 2
        self.stores: dict[str, dict[str, Json]] = {name: {} for name in _KEYS}
        self.versions: dict[str, dict[str, Json]] = {}
        self.on_create: Callable[[Json], None] | None = None
        self._asked: dict[str, int] = {}
        self._lock = threading.RLock()
        self._gate = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def runs(self) -> list[Json]:
        """Every run, oldest first."""
        return list(self.stores["runs"].values())

    @property
    def schedules(self) -> list[Json]:
        """Every recurring run, oldest first."""
        return list(self.stores["recurringruns"].values())

    def count(self, method: str, path: str) -> int:
        """Number of requests whose path ends with `path`."""
        return sum(asked == method and requested.endswith(path) for asked, requested in self.requests)

    def close(self) -> None:
        """Stop listening."""
        self._gate.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def pause(self, delay_s: float) -> None:
        """Delay a request, at most until the server is closed."""
        self._gate.wait(delay_s)

    def trouble_for(self, method: str, path: str) -> Trouble | None:
        """The next failure for a request, if any."""
        with self._lock:
            self.requests.append((method, path))
            for trouble in self.troubles:
                if trouble.times and trouble.method == method and trouble.path in path:
                    trouble.times -= 1
                    return trouble
        return None

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> Json:
        """Execute a request."""
        token = (headers.get("authorization") or "").removeprefix("Bearer ")
        if self.tokens and token not in self.tokens:
            raise _RefusedError(401, 16, "Request header error: there is no user identity header.: Unauthenticated")
        if not path.startswith(_BASE):
            raise _RefusedError(404, 5, "Not Found")
        parts = [unquote(part) for part in path.removeprefix(_BASE).split("/")]
        with self._lock:
            return self._route(method, parts, query, body, headers)

    def _route(self, method: str, parts: list[str], query: dict[str, str], body: bytes, headers: Any) -> Json:
        match method, parts:
            case "GET", ["healthz"]:
                return {"multi_user": self.multi_user}
            case "POST", ["pipelines", "upload_version"]:
                return self._upload(query, body, headers)
            case "GET", ["pipelines", pipeline_id, "versions"]:
                self._get("pipelines", pipeline_id)
                return self._page("versions", list(self.versions.get(pipeline_id, {}).values()), query)
            case "POST", [kind] if kind in _KEYS:
                return self._create(kind, json.loads(body))
            case "GET", [kind] if kind in _KEYS:
                return self._list(kind, query)
            case "GET", ["runs", run_id]:
                return self._look(run_id)
            case "GET", [kind, name] if kind in _KEYS:
                return self._get(kind, name)
            case "DELETE", [kind, name] if kind in _KEYS:
                self._get(kind, name)
                del self.stores[kind][name]
                return {}
            case "POST", [kind, name] if ":" in name:
                return self._act(kind, *name.split(":"))
        raise _RefusedError(404, 5, "Not Found")

    def _act(self, kind: str, name: str, verb: str) -> Json:
        thing = self._get(kind, name)
        match kind, verb:
            case "runs", "terminate":
                thing["state"] = "CANCELING"  # Argo then fails the run, and KFP does not record why
                self.looks = [Look("CANCELING"), Look("FAILED", recorded_tasks("run-terminated"))]
                self._asked[name] = 0
            case "recurringruns", "enable" | "disable":
                thing["mode"] = verb.upper()
                on = [one for one in self.schedules if one["mode"] == "ENABLE"]
                names = [one["display_name"] for one in on]
                assert len(set(names)) == len(names), "two schedules of one name are enabled"
            case _:
                raise _RefusedError(404, 5, "Not Found")
        return {}

    def _get(self, kind: str, name: str) -> Json:
        if name not in self.stores[kind]:
            raise _RefusedError(404, 5, f"Failed to fetch: ResourceNotFoundError: {kind} {name} not found")
        return self.stores[kind][name]

    def _look(self, run_id: str) -> Json:
        run = self._get("runs", run_id)
        index = self._asked.get(run_id, 0)
        self._asked[run_id] = index + 1
        look = self.looks[min(index, len(self.looks) - 1)]
        error = {"error": {"code": 13, "message": look.error}} if look.error else {}
        run["state"] = look.state
        return {**run, **error, "run_details": {"task_details": look.tasks}}

    def _create(self, kind: str, value: Json) -> Json:
        known = set(_MODELS[kind].attribute_map.values())
        if unknown := value.keys() - known:
            raise _RefusedError(400, 3, f'proto: (line 1:2): unknown field "{min(unknown)}"')
        if not value.get("display_name"):
            raise _RefusedError(400, 3, "Invalid input error: name is empty. Please specify a valid name.")
        if kind in ("experiments", "pipelines"):
            if bool(value.get("namespace")) != self.multi_user:
                raise _RefusedError(400, 3, "Invalid input error: namespace, in the wrong mode for it")
            if any(one["display_name"] == value["display_name"] for one in self.stores[kind].values()):
                raise _RefusedError(409, 6, f"Already exist error: The name {value['display_name']} already exist.")
        else:
            self._check_runnable(value)
        key = str(uuid.uuid4())
        made = {**value, _KEYS[kind]: key, "created_at": _time(len(self.stores[kind]))}
        if kind == "runs":
            made["state"] = "PENDING"
        if kind == "recurringruns":
            # KFP fills it in, and returns 64-bit numbers as text
            made.setdefault("service_account", "pipeline-runner")
            made["max_concurrency"] = str(made["max_concurrency"])
        self.stores[kind][key] = made
        if kind == "runs" and self.on_create:
            self.on_create(made)
        return made

    def _check_runnable(self, value: Json) -> None:
        """Check inputs like `validatePipelineJobInputs` of KFP's API server."""
        self._get("experiments", value.get("experiment_id", ""))
        reference = value["pipeline_version_reference"]
        version = self.versions.get(reference["pipeline_id"], {}).get(reference["pipeline_version_id"])
        if version is None:
            raise _RefusedError.recorded("refused-no-pipeline")
        _check_compilable(version["pipeline_spec"])
        inputs = version["pipeline_spec"]["root"].get("inputDefinitions", {}).get("parameters", {})
        given = value["runtime_config"]["parameters"]
        for name, parameter in inputs.items():
            if name in given:
                if not isinstance(given[name], _TYPES[parameter["parameterType"]]):
                    raise _RefusedError(400, 3, f"input parameter {name} has the wrong type")
            elif not parameter.get("isOptional") and "defaultValue" not in parameter:
                raise _RefusedError(400, 3, f"parameter {name} is not optional, yet has neither default nor value")
        if extra := given.keys() - inputs.keys():
            raise _RefusedError(400, 3, f"parameter {sorted(extra)} provided but not required by pipeline")

    def _upload(self, query: dict[str, str], body: bytes, headers: Any) -> Json:
        pipeline_id, name = query["pipelineid"], query["name"]
        self._get("pipelines", pipeline_id)
        kept = self.versions.setdefault(pipeline_id, {})
        if any(version["name"] == name for version in kept.values()):
            raise _RefusedError(409, 6, f"Already exist error: The name {name} already exist.")
        message = message_from_bytes(b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body)
        [part] = [
            part for part in message.walk() if part.get_param("name", header="content-disposition") == "uploadfile"
        ]
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        spec = next(yaml.load_all(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        if "pipelineInfo" not in spec:
            raise _RefusedError(400, 3, "Invalid input error: unknown pipeline spec")
        key = str(uuid.uuid4())
        kept[key] = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": key,
            "name": name,
            "display_name": query.get("display_name") or name,
            "description": query.get("description", ""),
            "created_at": _time(len(kept)),
            "pipeline_spec": spec,
        }
        return kept[key]

    def _list(self, kind: str, query: dict[str, str]) -> Json:
        if self.multi_user and kind in ("experiments", "pipelines") and not query.get("namespace"):
            raise _RefusedError(400, 3, "Invalid input error: namespace is empty")
        items = list(self.stores[kind].values())
        if experiment := query.get("experiment_id"):
            items = [one for one in items if one["experiment_id"] == experiment]
        if query.get("sort_by") == "created_at desc":
            items.sort(key=lambda one: str(one["created_at"]), reverse=True)
        return self._page(kind, items, query)

    def _page(self, kind: str, items: list[Json], query: dict[str, str]) -> Json:
        if query.get("filter"):
            for predicate in json.loads(query["filter"])["predicates"]:
                assert predicate["operation"] in (1, "EQUALS"), "of all filters only this one is spoken here"
                items = [one for one in items if one[predicate["key"]] == predicate["stringValue"]]
        start = int(query.get("page_token") or 0)
        end = start + min(self.page_limit, int(query.get("page_size") or 10))
        following = {"next_page_token": str(end)} if end < len(items) else {}
        return {_LISTS.get(kind, kind): items[start:end], "total_size": len(items), **following}


def _check_compilable(spec: Json) -> None:
    """Refuse what KFP 2.17 cannot compile: a component that is the iterator of tasks in several DAGs."""
    dags = {"root": spec["root"], **spec.get("components", {})}
    users: dict[str, set[str]] = {}
    for name, component in dags.items():
        for one in component.get("dag", {}).get("tasks", {}).values():
            if "parameterIterator" in one:
                users.setdefault(one["componentRef"]["name"], set()).add(name)
    if any(len(names) > 1 for names in users.values()):
        raise _RefusedError.recorded("refused-compile")


def _time(second: int) -> str:
    return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second)).isoformat().replace("+00:00", "Z")


def _handler(server: KfpServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            trouble = server.trouble_for(self.command, parts.path)
            if trouble:
                server.pause(trouble.delay_s)
            status, kind, content = 200, "application/json", b""
            if trouble is None or trouble.after or (trouble.status == 0 and trouble.delay_s):
                try:
                    content = json.dumps(server.answer(self.command, parts.path, query, body, self.headers)).encode()
                except _RefusedError as error:
                    status = error.status
                    content = json.dumps(error.body).encode()
            if trouble and trouble.status:
                status, kind, content = trouble.status, trouble.content_type, trouble.body
            elif trouble and not trouble.delay_s:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - the library's names

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    return Handler


def as_kfp_gives(value: Any) -> Any:
    """A parameter as a step gets it: every number went through a double."""
    if isinstance(value, dict):
        return {name: as_kfp_gives(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [as_kfp_gives(entry) for entry in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
