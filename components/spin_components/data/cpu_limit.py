"""A limit on the processor time of a block, for templates of others that may loop without end."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class CpuLimitError(ValueError):
    """A block has used more processor time than it may."""


class cpu_limit:  # noqa: N801 - used as a function
    """Limit the block to so many seconds of this process's processor time; no limit outside the main thread.

    Processor time, not time on the clock: a busy machine makes nothing fail. The handler of SIGVTALRM stays after the
    first block, since to set it takes longer than to render a short text; without a timer nothing sends the signal.
    The error is raised again after each further `limit_s`, for a block that has caught it and goes on. Where a block is
    within another, the outer limit holds again once the inner block is left.

    Args:
        limit_s: seconds of processor time.

    Raises:
        CpuLimitError: the limit has passed.
    """

    _limit_s = 0.0
    _has_handler = False

    def __init__(self, limit_s: float) -> None:
        self._own_s = limit_s
        self._is_on = threading.current_thread() is threading.main_thread()
        self._outer_s, self._outer_left_s = 0.0, 0.0  # limit of the block around this one, and what is left of it

    def __enter__(self) -> None:
        if self._is_on:
            if not cpu_limit._has_handler:
                signal.signal(signal.SIGVTALRM, _expire)
                cpu_limit._has_handler = True
            self._outer_s, cpu_limit._limit_s = cpu_limit._limit_s, self._own_s
            self._outer_left_s, _ = signal.setitimer(signal.ITIMER_VIRTUAL, self._own_s, self._own_s)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_on:
            left_s, _ = signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            cpu_limit._limit_s = self._outer_s
            if self._outer_left_s:
                outer_left_s = max(self._outer_left_s - (self._own_s - left_s), 1e-3)
                signal.setitimer(signal.ITIMER_VIRTUAL, outer_left_s, self._outer_s)


def _expire(number: int, frame: FrameType | None) -> None:
    raise CpuLimitError(f"it was still running after {cpu_limit._limit_s:g} s of processor time")
