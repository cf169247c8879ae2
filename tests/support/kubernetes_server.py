"""A Kubernetes API server: HTTP, documented JSON, objects in memory, enforced RBAC.

It serves objects (create, get, list, watch, update, patch, delete, `status`), pods' logs (with follow), access
reviews, versions and discovery. It starts no pods: tests, or functions in `objects.on_create`, act as controllers.
`objects.on_create`.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from support.kubernetes_objects import ApiError, Kind, Object, Objects, merged, selected
from support.kubernetes_rights import ADMINS, Access, User, may

Script = Callable[[str], int | None]
"""Called with `METHOD /path?query`; returns a status to fail with, 0 to drop the connection, None to proceed."""

ADMIN_TOKEN = "admin-token-that-must-not-leak"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_FINISHED = ("Succeeded", "Failed")
_PATH = re.compile(r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))(?P<rest>/.*)?")


class KubernetesServer(ThreadingHTTPServer):
    """Listens on a loopback port.

    Attributes:
        objects: all objects; tests may change them.
        users: user of each bearer token.
        script: decides which requests fail.
        version: `gitVersion`.
        requests: every request so far, as `METHOD /path?query`.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = Objects()
        self.users = {ADMIN_TOKEN: User("admin", (ADMINS, "system:authenticated"))}
        self.script: Script = lambda request: None
        self.version = "v1.33.1"
        self.requests: list[str] = []
        self.is_closing = threading.Event()
        self._logs: dict[tuple[str, str, str], list[tuple[float, str]]] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, *items: Object) -> None:
        """Create or replace objects; their namespaces need not exist."""
        for item in items:
            self.objects.put(item)

    def log(self, pod: str, *lines: str, namespace: str, container: str = "main") -> None:
        """Add lines to the log of a pod's container."""
        with self.objects.changed:
            known = self._logs.setdefault((namespace, pod, container), [])
            known.extend((time.time(), line) for line in lines)
            self.objects.changed.notify_all()

    def log_of(self, namespace: str, pod: str, container: str) -> list[tuple[float, str]]:
        """Time and text of the lines of a container's log."""
        with self.objects.changed:
            return list(self._logs.get((namespace, pod, container), []))

    def write_kubeconfig(self, path: Path, token: str = ADMIN_TOKEN, namespace: str = "kubeflow") -> Path:
        """Write a kubeconfig file whose current context is this server."""
        named: dict[str, Any] = {
            "clusters": [{"name": "here", "cluster": {"server": self.endpoint}}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": namespace}}],
        }
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "here", **named}
        path.write_text(yaml.safe_dump(config), "utf-8")
        return path


@contextmanager
def kubernetes_server() -> Iterator[KubernetesServer]:
    """A server that answers as long as the block lasts."""
    with KubernetesServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="kubernetes")
        thread.start()
        try:
            yield server
        finally:
            server.is_closing.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: KubernetesServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are separate writes

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            self._handle()

    def _handle(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        request = f"{self.command} {self.path}"
        self.server.requests.append(request)
        forced = self.server.script(request)
        if forced == 0:  # sends RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        try:
            if forced is not None:
                raise ApiError(forced, "InternalError", "injected by the test")
            self._answer(json.loads(content) if content else None)
        except ApiError as error:
            self._send_json(error.status, _status(error))

    def _answer(self, body: Any) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        user = self.server.users.get(self.headers.get("authorization", "").removeprefix("Bearer "))
        if user is None:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        if url.path == "/version":
            major, minor = self.server.version.removeprefix("v").split(".")[:2]
            self._send_json(200, {"major": major, "minor": minor, "gitVersion": self.server.version})
            return
        match = _PATH.fullmatch(url.path)
        if match is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        api_version = match["core"] or f"{match['group']}/{match['version']}"
        parts = [unquote(part) for part in (match["rest"] or "").split("/") if part]
        if not parts:
            self._discover(api_version)
        elif match["group"] == "authorization.k8s.io":
            self._review(user, parts, body)
        else:
            self._serve(user, api_version, parts, body)

    def _discover(self, api_version: str) -> None:
        kinds = [kind for kind in self.server.objects.kinds if kind.api_version == api_version]
        if not kinds:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        resources = [{"name": kind.plural, "kind": kind.name, "namespaced": kind.is_namespaced} for kind in kinds]
        self._send_json(200, {"kind": "APIResourceList", "groupVersion": api_version, "resources": resources})

    def _review(self, user: User, parts: list[str], body: Object) -> None:
        namespace = parts[1] if parts[0] == "namespaces" else ""
        plural = parts[-1]
        self._authorize(user, Access("create", "authorization.k8s.io", plural, namespace))
        spec = body["spec"]
        if plural == "localsubjectaccessreviews" and spec["resourceAttributes"].get("namespace") != namespace:
            raise ApiError(422, "Invalid", "spec.resourceAttributes.namespace: must match metadata.namespace")
        about = user if plural.startswith("self") else User(spec["user"], tuple(spec.get("groups") or ()))
        asked = spec["resourceAttributes"]
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        access = Access(
            asked["verb"], asked.get("group", ""), resource, asked.get("namespace", ""), asked.get("name", "")
        )
        self._send_json(201, {**body, "status": {"allowed": may(self.server.objects, about, access)}})

    def _serve(self, user: User, api_version: str, parts: list[str], body: Any) -> None:
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        kinds = [
            kind for kind in self.server.objects.kinds if (kind.api_version, kind.plural) == (api_version, parts[0])
        ]
        if not kinds:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        kind, name, subresource = kinds[0], *(*parts[1:], "", "")[:2]
        is_watch = self._is_set("watch")
        verb = _VERBS.get(self.command) or ("get" if name else "watch" if is_watch else "list")
        if verb == "delete" and not name:
            verb = "deletecollection"
        resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
        scope = (
            name if kind.plural == "namespaces" else namespace
        )  # a role in a namespace may include the namespace itself
        self._authorize(user, Access(verb, kind.group, resource, scope, name))
        if subresource == "log":
            self._send_log(kind, namespace, name)
        elif name:
            self._serve_one(kind, namespace, name, subresource, body)
        elif is_watch:
            self._watch(kind, namespace)
        else:
            self._serve_many(kind, namespace, body)

    def _authorize(self, user: User, access: Access) -> None:
        if not may(self.server.objects, user, access):
            where = f' in the namespace "{access.namespace}"' if access.namespace else " at the cluster scope"
            what = f'cannot {access.verb} resource "{access.resource}" in API group "{access.group}"{where}'
            raise ApiError(403, "Forbidden", f'{access.resource} is forbidden: User "{user.name}" {what}')

    def _serve_one(self, kind: Kind, namespace: str, name: str, subresource: str, body: Any) -> None:
        objects = self.server.objects
        match self.command:
            case "PUT" if subresource == "status":
                item = objects.update(kind, namespace, name, lambda now: {**now, "status": body.get("status", {})})
            case "PUT":
                item = objects.update(kind, namespace, name, lambda now: body)
            case "PATCH":
                if isinstance(body, list):
                    raise ApiError(415, "UnsupportedMediaType", "merge patches only")
                item = objects.update(kind, namespace, name, lambda now: merged(now, body))
            case "DELETE":
                item = objects.delete(kind, namespace, name)
            case _:
                item = objects.get(kind, namespace, name)
        self._send_json(200, item)

    def _serve_many(self, kind: Kind, namespace: str, body: Any) -> None:
        objects = self.server.objects
        if self.command == "POST":
            self._send_json(201, objects.create(kind, namespace, body))
            return
        labels, fields = self.query.get("labelSelector", ""), self.query.get("fieldSelector", "")
        items, version = objects.list(kind, namespace, labels, fields)
        if self.command == "DELETE":
            for item in items:
                objects.delete(kind, namespace, item["metadata"]["name"])
        metadata = {"resourceVersion": str(version)}
        head = {"apiVersion": kind.api_version, "kind": f"{kind.name}List", "metadata": metadata}
        self._send_json(200, {**head, "items": items})

    def _watch(self, kind: Kind, namespace: str) -> None:
        """Stream events; without a version, existing objects come first, as ADDED."""
        labels, fields = self.query.get("labelSelector", ""), self.query.get("fieldSelector", "")
        items, version = self.server.objects.list(kind, namespace)
        since = int(self.query.get("resourceVersion") or 0)
        deadline = time.monotonic() + float(self.query.get("timeoutSeconds", 3600))
        self._begin_stream("application/json")
        for item in items if since == 0 else ():
            if selected(item, labels, fields):
                self._send_chunk(json.dumps({"type": "ADDED", "object": item}) + "\n")

        def is_over() -> bool:
            return self.server.is_closing.is_set() or time.monotonic() > deadline

        for what, item in self.server.objects.events(kind, namespace, since or version, is_over):
            if selected(item, labels, fields):
                self._send_chunk(json.dumps({"type": what, "object": item}) + "\n")
        self._end_stream()

    def _send_log(self, kind: Kind, namespace: str, name: str) -> None:
        pod = self.server.objects.get(kind, namespace, name)
        containers = [item["name"] for item in pod.get("spec", {}).get("containers", [])] or ["main"]
        container = self.query.get("container") or (containers[0] if len(containers) == 1 else "")
        if container not in containers:
            message = f"a container name must be specified for pod {name}, choose one of: {containers}"
            raise ApiError(400, "BadRequest", message)
        if pod.get("status", {}).get("phase") == "Pending":
            raise ApiError(400, "BadRequest", f'container "{container}" in pod "{name}" is waiting to start')
        lines = self.server.log_of(namespace, name, container)
        sent = max(len(lines) - int(self.query["tailLines"]), 0) if "tailLines" in self.query else 0
        follows = self._is_set("follow")
        self._begin_stream("text/plain")
        while True:
            lines = self.server.log_of(namespace, name, container)
            if lines[sent:]:
                self._send_chunk("".join(self._log_line(*line) for line in lines[sent:]))
            sent = len(lines)
            pod_now = self.server.objects.find("pods", name, namespace) or {"status": {"phase": "Failed"}}
            is_over = pod_now.get("status", {}).get("phase") in _FINISHED or self.server.is_closing.is_set()
            if not follows or (is_over and len(self.server.log_of(namespace, name, container)) == sent):
                break
            with self.server.objects.changed:
                self.server.objects.changed.wait(0.05)
        self._end_stream()

    def _is_set(self, name: str) -> bool:
        """Whether a parameter is true, as parsed by Go."""
        return self.query.get(name) in ("1", "t", "T", "true", "TRUE", "True")

    def _log_line(self, when: float, line: str) -> str:
        if not self._is_set("timestamps"):
            return f"{line}\n"
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when))
        return f"{seconds}.{int(when % 1 * 1e9):09d}Z {line}\n"

    def _send_json(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _begin_stream(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send_chunk(self, text: str) -> None:
        content = text.encode()
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def _end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")


def _status(error: ApiError) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": str(error),
        "reason": error.reason,
        "code": error.status,
    }
