"""Signals that ask a process to end, SIGINT and SIGTERM, as an exception in its main thread."""

from __future__ import annotations

import os
import signal
import time
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


class Forwarding:
    """SIGINT and SIGTERM of this process, passed on to a child.

    Attributes:
        number: of the first signal that came; 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._child = 0
        self._previous = {number: signal.getsignal(number) for number in _ENDING}

    @contextmanager
    def to(self, child: int) -> Iterator[None]:
        """Pass signals on to a child in the block, also one that came before it."""
        self._child = child
        if self.number:
            os.kill(child, self.number)
        try:
            yield
        finally:
            self._child = 0

    def restore(self) -> None:
        """Restore the previous handlers: in the child itself, which inherits those of its parent."""
        with suppress(ValueError):  # not the main thread
            for number, before in self._previous.items():
                signal.signal(number, before)

    def wait(self, pause_s: float) -> bool:
        """Wait, until a signal comes at the longest; returns whether one has come."""
        until = time.monotonic() + pause_s
        while not self.number and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))
        return bool(self.number)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.number = self.number or number
        if self._child:
            os.kill(self._child, number)


@contextmanager
def forwarded() -> Iterator[Forwarding]:
    """Pass SIGINT and SIGTERM on to children in the block."""
    forwarding = Forwarding()
    with _handled(forwarding.handle):
        yield forwarding


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
