"""A proxy between a client and an S3 server that injects faults into chosen requests, over real sockets."""

from __future__ import annotations

import hashlib
import socket
import threading
from contextlib import closing, suppress
from pathlib import Path

from faults.exchange import DropError, Exchange, Upstream, read_message
from faults.harms import HARMS, Rule

_NOT_MET = b"<Error><Code>PreconditionFailed</Code><Message>At least one precondition did not hold.</Message></Error>"


class Proxy:
    """Listens on a loopback port and forwards to a server; headers are unchanged, so that signatures stay valid.

    Args:
        server_port: of the server.
        objects: folder of the server's buckets; with it, the conditions of a PUT are checked as S3 does, which the
            server itself does not.

    Attributes:
        rules: the first that applies to a request is used.
        requests: every request so far, as `METHOD /bucket/key?query`.
    """

    def __init__(self, server_port: int, objects: Path | None = None) -> None:
        self.rules: list[Rule] = []
        self.requests: list[str] = []
        self._server = ("127.0.0.1", server_port)
        self._lock = threading.Lock()
        self._objects, self._writing = objects, threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def reset(self, *rules: Rule) -> None:
        """Replace the rules and clear the recorded requests."""
        with self._lock:
            self.rules, self.requests = list(rules), []

    def close(self) -> None:
        """Close all connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(client)
            threading.Thread(target=self._serve, args=(client,), name="proxied", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream, closing(Upstream(self._server)) as upstream:
            with suppress(OSError, DropError):
                while (request := read_message(stream)) and request.is_whole:
                    self._pass_on(Exchange(request, upstream, client))
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._connections.discard(client)

    def _pass_on(self, exchange: Exchange) -> None:
        line = exchange.request.first_line.rpartition(" ")[0]
        with self._lock:
            self.requests.append(line)
            rule = next((rule for rule in self.rules if rule.applies(line)), None)
        if rule is not None:
            HARMS[rule.harm](exchange, rule)
        elif self._objects is None or not line.startswith("PUT "):
            exchange.reply(exchange.forward())
        else:
            with self._writing:
                if is_met(exchange, self._objects / line.removeprefix("PUT /")):
                    exchange.reply(exchange.forward())
                else:
                    exchange.refuse("412 Precondition Failed", _NOT_MET)


def is_met(exchange: Exchange, file: Path) -> bool:
    """Whether the conditions of a PUT hold for an object's file."""
    tag = f'"{hashlib.md5(file.read_bytes()).hexdigest()}"' if file.is_file() else None
    is_new = exchange.header("if-none-match") is None or tag is None
    return is_new and exchange.header("if-match") in (None, tag)
