"""A proxy between a client and an S3 server that does harm to chosen requests: real sockets, real broken answers."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
_MISMATCH = (
    b"<Error><Code>XAmzContentSHA256Mismatch</Code>"
    b"<Message>The provided 'x-amz-content-sha256' header does not match what was computed.</Message></Error>"
)
_DELAY_S, _SILENCE_S = 1.0, 6.0


class DropError(Exception):
    """The connection to the client ends here."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer.

    Attributes:
        head: first line and headers, with the empty line.
        body: as many bytes as the head promises; fewer where the sender broke off.
        is_whole: whether they are as many.
    """

    head: bytes
    body: bytes
    is_whole: bool = True

    @property
    def first_line(self) -> str:
        return self.head.partition(b"\r\n")[0].decode("latin-1")


@dataclass(slots=True)
class Rule:
    """Harm to some of the requests that match a pattern.

    Attributes:
        pattern: searched in `METHOD /bucket/key?query`.
        harm: a key of `HARMS`.
        skip: matching requests that pass unharmed first.
        times: how many are harmed then.
        strike: called at the harmed request: kills the worker or the server, for the harms that need one.
        hits: requests harmed so far.
    """

    pattern: str
    harm: str
    skip: int = 0
    times: int = 1
    strike: Callable[[], None] | None = None
    hits: int = field(default=0, init=False)
    _seen: int = field(default=0, init=False)

    def applies(self, request: str) -> bool:
        """Whether this request is to be harmed; counts it."""
        if not re.search(self.pattern, request):
            return False
        self._seen += 1
        if not self.skip < self._seen <= self.skip + self.times:
            return False
        self.hits += 1
        return True


@dataclass(slots=True)
class Exchange:
    """One request on its way to the server, and its answer on the way back."""

    request: Message
    server: tuple[str, int]
    client: socket.socket

    def forward(self, cut_at: int | None = None) -> Message:
        """Send the request on and read the answer; with `cut_at`, send so much of the body and break off."""
        with socket.create_connection(self.server, timeout=60) as upstream:
            upstream.sendall(self.request.head + self.request.body[:cut_at])
            if cut_at is not None:
                time.sleep(0.02)  # time for the server to begin with what it has
                raise DropError
            with upstream.makefile("rb") as stream:
                answer = read_message(stream.readline, stream.read, is_answer_to=self.request.first_line)
        if answer is None:
            raise DropError
        return answer

    def reply(self, answer: Message) -> None:
        """Pass an answer to the client; one that the server broke off ends the connection."""
        self.client.sendall(answer.head + answer.body)
        if not answer.is_whole:
            raise DropError

    def refuse(self, status: str, content: bytes) -> None:
        """Answer in the server's place."""
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(content)}\r\n\r\n"
        self.reply(Message(head.encode(), b"" if self.request.first_line.startswith("HEAD") else content))

    @property
    def half(self) -> int:
        return len(self.request.body) // 2


def _drop(exchange: Exchange, rule: Rule) -> None:
    raise DropError


def _slow_down(exchange: Exchange, rule: Rule) -> None:
    exchange.refuse("503 Service Unavailable", _SLOW_DOWN)


def _internal_error(exchange: Exchange, rule: Rule) -> None:
    exchange.refuse("500 Internal Server Error", _INTERNAL)


def _delay(exchange: Exchange, rule: Rule) -> None:
    time.sleep(_DELAY_S)
    exchange.reply(exchange.forward())


def _cut_request(exchange: Exchange, rule: Rule) -> None:
    exchange.forward(cut_at=exchange.half)


def _lose_answer(exchange: Exchange, rule: Rule) -> None:
    exchange.forward()
    raise DropError


def _truncate_answer(exchange: Exchange, rule: Rule) -> None:
    answer = exchange.forward()
    kept = answer.body[: len(answer.body) // 2]
    exchange.reply(Message(answer.head if answer.body else answer.head[: len(answer.head) // 2], kept))
    raise DropError


def _flip_answer(exchange: Exchange, rule: Rule) -> None:
    answer = exchange.forward()
    exchange.reply(Message(answer.head, flip(answer.body, len(answer.body) // 2)))


def _flip_request(exchange: Exchange, rule: Rule) -> None:
    """What S3 answers to a body that is not what was signed; the server behind this proxy does not look."""
    exchange.refuse("400 Bad Request", _MISMATCH)


def _strike_before(exchange: Exchange, rule: Rule) -> None:
    _strike(rule)


def _strike_in_mid_request(exchange: Exchange, rule: Rule) -> None:
    with suppress(DropError):
        exchange.forward(cut_at=exchange.half)
    _strike(rule)


def _strike_in_mid_answer(exchange: Exchange, rule: Rule) -> None:
    answer = exchange.forward()
    exchange.reply(Message(answer.head, answer.body[: len(answer.body) // 2]))
    _strike(rule)


def _strike_after(exchange: Exchange, rule: Rule) -> None:
    exchange.forward()
    _strike(rule)


def _strike(rule: Rule) -> None:
    assert rule.strike is not None, f"{rule.harm} needs something to strike"
    rule.strike()
    raise DropError


def _pause(exchange: Exchange, rule: Rule) -> None:
    assert rule.strike is not None
    rule.strike()
    exchange.reply(exchange.forward())


def _silence(exchange: Exchange, rule: Rule) -> None:
    time.sleep(_SILENCE_S)
    raise DropError


HARMS: dict[str, Callable[[Exchange, Rule], None]] = {
    "drop": _drop,
    "slow down": _slow_down,
    "internal error": _internal_error,
    "delay": _delay,
    "cut request": _cut_request,
    "lose answer": _lose_answer,
    "truncate answer": _truncate_answer,
    "flip answer": _flip_answer,
    "flip request": _flip_request,
    "silence": _silence,
    "pause": _pause,
    "strike before": _strike_before,
    "strike in mid-request": _strike_in_mid_request,
    "strike in mid-answer": _strike_in_mid_answer,
    "strike after": _strike_after,
}
"""What can happen to a request; `pause` and the strikes call the rule's `strike`."""


class Proxy:
    """Listens on a loopback port and forwards to a server's; headers pass unchanged, so that signatures hold.

    Attributes:
        rules: what to harm, and how; the first that applies is taken.
        requests: every request so far, as `METHOD /bucket/key?query`.
    """

    def __init__(self, server_port: int) -> None:
        self.rules: list[Rule] = []
        self.requests: list[str] = []
        self._server = ("127.0.0.1", server_port)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def reset(self, *rules: Rule) -> None:
        """Take up other rules and forget the requests so far."""
        with self._lock:
            self.rules, self.requests = list(rules), []

    def close(self) -> None:
        """End every connection."""
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
        with client, client.makefile("rb") as stream:
            with suppress(OSError, DropError):
                while (request := read_message(stream.readline, stream.read)) and request.is_whole:
                    self._pass_on(Exchange(request, self._server, client))
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._connections.discard(client)

    def _pass_on(self, exchange: Exchange) -> None:
        line = exchange.request.first_line.rpartition(" ")[0]
        with self._lock:
            self.requests.append(line)
            rule = next((rule for rule in self.rules if rule.applies(line)), None)
        if rule is None:
            exchange.reply(exchange.forward())
        else:
            HARMS[rule.harm](exchange, rule)


def read_message(
    readline: Callable[[], bytes], read: Callable[[int], bytes], *, is_answer_to: str = ""
) -> Message | None:
    """Read one HTTP message; None where the sender has ended the connection."""
    head, length = b"", 0
    while (line := readline()) not in (b"\r\n", b""):
        head += line
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    if not line:
        return None
    length = 0 if is_answer_to.startswith("HEAD") else length
    body = read(length)
    return Message(head + line, body, len(body) == length)


def flip(content: bytes, place: int) -> bytes:
    """The same bytes, the lowest bit of one turned over."""
    if not content:
        return content
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
