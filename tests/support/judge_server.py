"""An HTTP server for the chat-completions protocol, used as a judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-key-that-must-not-leak"


@dataclass
class Answer:
    """A response of the server other than a completion.

    Attributes:
        after_s: delay before it.
        piece_bytes: size of the pieces that its body is sent in; 0 for all at once.
        pause_s: pause after each piece.
    """

    status: int
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    piece_bytes: int = 0
    pause_s: float = 0.0


class JudgeServer:
    """Listens on a loopback port until `close`.

    Args:
        reply: computes the text of a completion from the prompt.
        first: responses to the first requests.
        key: required API key; empty for none.
        every: a response to all requests.
        takes_s: duration of each completion in seconds.
    """

    def __init__(
        self,
        reply: Callable[[str], str] = lambda asked: "Score: 5",
        first: list[Answer] | None = None,
        *,
        key: str = "",
        every: Answer | None = None,
        takes_s: float = 0.0,
    ) -> None:
        self.reply, self.first, self.key, self.every, self.takes_s = reply, list(first or []), key, every, takes_s
        self.requests: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock, self.closing = threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = outer.answer(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                with suppress(ConnectionError):  # the client may have timed out
                    for start in range(0, len(answer.body), answer.piece_bytes or len(answer.body)):
                        self.wfile.write(answer.body[start : start + (answer.piece_bytes or len(answer.body))])
                        outer.closing.wait(answer.pause_s)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Do not log requests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; what waits is answered."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """The response to a request."""
        with self._lock:
            self.requests.append(json.loads(body))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            planned = self.every or (self.first.pop(0) if self.first else None)
        try:
            self.closing.wait(planned.after_s if planned else self.takes_s)
            return planned or self._completion(path, headers, json.loads(body))
        finally:
            with self._lock:
                self._at_once -= 1

    def _completion(self, path: str, headers: dict[str, str], asked: dict[str, Any]) -> Answer:
        if path != "/v1/chat/completions":
            return _error(404, f"no such path: {path}")
        authorization = headers.get("authorization", "")
        if self.key and authorization != f"Bearer {self.key}":
            return _error(401, f"wrong key: {authorization}")
        if asked["model"] != "judge":
            return _error(404, f"the model {asked['model']} does not exist")
        content = self.reply(asked["messages"][-1]["content"])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        completion = {"id": "c", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice]}
        return Answer(200, json.dumps(completion).encode())


def _error(status: int, message: str) -> Answer:
    return Answer(status, json.dumps({"error": {"message": message, "type": "error"}}).encode())
