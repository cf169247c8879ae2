"""HTTP messages passing through the proxy."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import BinaryIO


class DropError(Exception):
    """Close the connection to the client."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer.

    Attributes:
        head: first line and headers, with the empty line.
        body: as many bytes as Content-Length says; fewer if the sender disconnected.
        is_whole: whether the body is complete.
    """

    head: bytes
    body: bytes
    is_whole: bool = True

    @property
    def first_line(self) -> str:
        return self.head.partition(b"\r\n")[0].decode("latin-1")


@dataclass(slots=True)
class Upstream:
    """A connection to the server, opened when needed and kept alive.

    Args:
        server: its address.
    """

    server: tuple[str, int]
    _socket: socket.socket | None = None

    def ask(self, request: Message) -> Message | None:
        """Send a request and return the answer; None if the server disconnects without one."""
        if self._socket is not None:
            try:
                if answer := self._ask(request):
                    return answer
            except OSError:
                pass  # the server closed an idle connection
            self.close()
        return self._ask(request)

    def _ask(self, request: Message) -> Message | None:
        if self._socket is None:
            self._socket = socket.create_connection(self.server, timeout=60)
        self._socket.sendall(request.head + request.body)
        with self._socket.makefile("rb") as stream:
            answer = read_message(stream, is_answer_to=request.first_line)
        if answer is None or not answer.is_whole:
            self.close()
        return answer

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass(slots=True)
class Exchange:
    """A request from a client, to be forwarded and answered."""

    request: Message
    upstream: Upstream
    client: socket.socket

    def forward(self, cut_at: int | None = None) -> Message:
        """Forward the request and read the answer; with `cut_at`, send that many bytes of the body and disconnect."""
        if cut_at is not None:
            with socket.create_connection(self.upstream.server, timeout=60) as cut:
                cut.sendall(self.request.head + self.request.body[:cut_at])
                time.sleep(0.02)  # lets the server start processing the part
            raise DropError
        if (answer := self.upstream.ask(self.request)) is None:
            raise DropError
        return answer

    def reply(self, answer: Message) -> None:
        """Send an answer to the client; an incomplete one closes the connection."""
        self.client.sendall(answer.head + answer.body)
        if not answer.is_whole:
            raise DropError

    def refuse(self, status: str, content: bytes) -> None:
        """Answer instead of the server."""
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(content)}\r\n\r\n"
        self.reply(Message(head.encode(), b"" if self.request.first_line.startswith("HEAD") else content))

    def header(self, name: str) -> str | None:
        """A header of the request."""
        for line in self.request.head.decode("latin-1").split("\r\n")[1:]:
            if line.lower().startswith(f"{name}:"):
                return line.partition(":")[2].strip()
        return None

    @property
    def half(self) -> int:
        return len(self.request.body) // 2


def read_message(stream: BinaryIO, *, is_answer_to: str = "") -> Message | None:
    """Read one HTTP message; None if the sender closed the connection."""
    head, length = b"", 0
    while (line := stream.readline()) not in (b"\r\n", b""):
        head += line
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    if not line:
        return None
    length = 0 if is_answer_to.startswith("HEAD") else length
    body = stream.read(length)
    return Message(head + line, body, len(body) == length)
