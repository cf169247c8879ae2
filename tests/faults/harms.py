"""Effects of faults on requests."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from faults.exchange import DropError, Exchange, Message

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
_MISMATCH = (
    b"<Error><Code>XAmzContentSHA256Mismatch</Code>"
    b"<Message>The provided 'x-amz-content-sha256' header does not match what was computed.</Message></Error>"
)
_DELAY_S = 0.2


@dataclass(slots=True)
class Rule:
    """Applies an effect to some of the requests that match a pattern.

    Attributes:
        pattern: searched in `METHOD /bucket/key?query`.
        harm: a key of `HARMS`.
        skip: number of matching requests to pass first.
        times: number of requests to affect.
        strike: called at the affected request, e.g. to kill the worker or the server.
        hits: number of affected requests.
    """

    pattern: str
    harm: str
    skip: int = 0
    times: int = 1
    strike: Callable[[], None] | None = None
    hits: int = field(default=0, init=False)
    _seen: int = field(default=0, init=False)

    def applies(self, request: str) -> bool:
        """Whether the rule applies to this request; counts it."""
        if not re.search(self.pattern, request):
            return False
        self._seen += 1
        if not self.skip < self._seen <= self.skip + self.times:
            return False
        self.hits += 1
        return True


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
    """Answer like S3 to a body with another digest than the signed one, which the test server does not check."""
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
    assert rule.strike is not None, f"{rule.harm} needs `strike`"
    rule.strike()
    raise DropError


def _pause(exchange: Exchange, rule: Rule) -> None:
    assert rule.strike is not None
    rule.strike()
    exchange.reply(exchange.forward())


def _store_late(exchange: Exchange, rule: Rule) -> None:
    """Keep a PUT whose sender gets no answer, and let it arrive after `strike` has returned."""
    assert rule.strike is not None
    exchange.client.close()
    rule.strike()
    with suppress(DropError):
        exchange.forward()
    raise DropError


def _store_twice(exchange: Exchange, rule: Rule) -> None:
    exchange.forward()
    exchange.reply(exchange.forward())


def _silence(exchange: Exchange, rule: Rule) -> None:
    exchange.client.recv(1)  # the client sends nothing more: this returns when it has given up
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
    "store late": _store_late,
    "store twice": _store_twice,
    "pause": _pause,
    "strike before": _strike_before,
    "strike in mid-request": _strike_in_mid_request,
    "strike in mid-answer": _strike_in_mid_answer,
    "strike after": _strike_after,
}
"""All effects; `pause`, `store late` and the strikes call the rule's `strike`."""


def flip(content: bytes, offset: int) -> bytes:
    """A copy with the lowest bit of one byte flipped."""
    if not content:
        return content
    return content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]
