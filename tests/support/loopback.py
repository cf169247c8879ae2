"""A loopback HTTP server with scripted responses that forwards all other requests to a real S3 server."""

from __future__ import annotations

import http.client
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from socket import SO_LINGER, SOL_SOCKET

Script = Callable[[str], bytes | None]
"""Returns the HTTP response to `METHOD /bucket/key?query` as bytes; `b""` to reset the connection, None to forward."""

XML = "application/xml"


def reply(status: int, body: bytes = b"", content_type: str = XML, length: int | None = None) -> bytes:
    """Build an HTTP response; `length` is a false Content-Length."""
    head = f"HTTP/1.1 {status} Said so\r\nConnection: close\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


def refusal(status: int, code: str) -> bytes:
    """Build an S3 error response."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said the server</Message></Error>"
    return reply(status, body.encode())


class Loopback(socketserver.ThreadingTCPServer):
    """Listens on a port of its own.

    Attributes:
        requests: every request so far, as `METHOD /bucket/key?query`.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: Script, upstream_port: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.upstream_port = script, upstream_port
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, start: str) -> int:
        """Count the requests so far that start with a text."""
        return sum(request.startswith(start) for request in self.requests)


@contextmanager
def listening(script: Script, upstream_port: int = 0) -> Iterator[Loopback]:
    """Context manager that runs a server."""
    with Loopback(script, upstream_port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="loopback")
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def times(number: int, start: str, answer: bytes) -> Script:
    """Script that answers the first requests that start with a text, and forwards the others."""
    left = iter(range(number))
    return lambda request: answer if request.startswith(start) and next(left, None) is not None else None


class _Handler(BaseHTTPRequestHandler):
    server: Loopback
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        with suppress(OSError):
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            line = f"{self.command} {self.path}"
            self.server.requests.append(line)
            answer = self.server.script(line)
            if answer is None:
                self._pass_on(body)
                return
            self.close_connection = True
            if answer:
                self.wfile.write(answer)
            else:  # RST instead of FIN
                self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def _pass_on(self, body: bytes) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=30)
        try:
            upstream.request(self.command, self.path, body=body or None, headers=dict(self.headers))
            response = upstream.getresponse()
            content = response.read()
        finally:
            upstream.close()
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        length = response.headers.get("content-length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content)
