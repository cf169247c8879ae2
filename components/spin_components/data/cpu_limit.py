"""A limit on the processor time of a block, for templates of others that may loop without end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class CpuLimitError(ValueError):
    """A block has used more processor time than it may."""


@contextmanager
def cpu_limit(limit_s: float) -> Iterator[None]:
    """Limit the block to so many seconds of this process's processor time; no limit outside the main thread.

    Processor time, not time on the clock: a busy machine makes nothing fail.

    Raises:
        CpuLimitError: the limit has passed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise CpuLimitError(f"it was still running after {limit_s:g} s of processor time")

    previous = signal.signal(signal.SIGVTALRM, expire)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
