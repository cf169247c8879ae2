"""Signals that ask a process to end, SIGINT and SIGTERM, as an exception in its main thread."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal has asked this process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the block at SIGINT (Ctrl-C) and SIGTERM, which Kubernetes and CI send.

    Python handles signals in the main thread alone; in another thread nothing changes.
    """
    with _handled(_interrupt):
        yield


@contextmanager
def postponed() -> Iterator[Callable[[], bool]]:
    """Raise `Interrupted` at the end of the block only; yields a function that returns whether a signal has come."""
    numbers: list[int] = []
    with _handled(lambda number, frame: numbers.append(number)):
        yield lambda: bool(numbers)
    if numbers:
        raise Interrupted(numbers[0])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM in the block, which ends what must not be left behind."""
    with _handled(signal.SIG_IGN):
        yield


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    previous: dict[signal.Signals, Any] = {}
    with suppress(ValueError):  # not the main thread
        previous = {number: signal.signal(number, handler) for number in _ENDING}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
