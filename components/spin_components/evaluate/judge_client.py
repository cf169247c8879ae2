"""The connection to a judge, which is a stranger: its replies are limited in size, its redirects in where they lead."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openai

MAX_REPLY_BYTES, MAX_ENCODED_BYTES = 1 << 20, 64 << 10
"""Largest reply, and largest reply that is compressed although that was not asked for."""


class ReplyTooLargeError(Exception):
    """A reply is larger than a judge's reply may be."""


class RedirectedError(Exception):
    """A reply redirects to another host, or from https to http; the prompts and the key do not go there."""


def connect(url: str, *, key: str, timeout_s: float, max_retries: int) -> openai.OpenAI:
    """A client of chat completions whose replies are limited.

    Args:
        url: of the endpoint.
        key: API key; empty for none.
        timeout_s: of one request.
        max_retries: maximum number of retries of a request.
    """
    import openai

    http: Any = import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])  # httpx, or httpx2

    class Limited(http.SyncByteStream):  # type: ignore[misc]
        """The body of a reply; raises `ReplyTooLargeError` where it is too large."""

        def __init__(self, stream: Any, max_bytes: int) -> None:
            self._stream, self._max_bytes = stream, max_bytes

        def __iter__(self) -> Iterator[bytes]:
            num_bytes = 0
            for chunk in self._stream:
                num_bytes += len(chunk)
                if num_bytes > self._max_bytes:
                    raise ReplyTooLargeError(f"a reply has more than {self._max_bytes} bytes")
                yield chunk

        def close(self) -> None:
            self._stream.close()

    def check(response: Any) -> None:
        _check_redirect(response)
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        response.stream = Limited(response.stream, MAX_ENCODED_BYTES if encoded else MAX_REPLY_BYTES)

    return openai.OpenAI(
        base_url=url,
        api_key=key or "none",  # the client needs one; an endpoint without keys ignores it
        max_retries=max_retries,
        timeout=timeout_s,
        default_headers={"Accept-Encoding": "identity"},
        http_client=openai.DefaultHttpxClient(timeout=timeout_s, event_hooks={"response": [check]}),
    )


def _check_redirect(response: Any) -> None:
    if not response.has_redirect_location:
        return
    target = response.url.join(response.headers["location"])
    if target.host != response.url.host or (response.url.scheme == "https" and target.scheme != "https"):
        raise RedirectedError(f"it redirects to {target.scheme}://{target.host}")
