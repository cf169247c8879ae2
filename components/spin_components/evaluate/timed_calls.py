"""Concurrent calls, each given up after a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def timed_calls(
    function: Callable[[Item], Result], items: Sequence[Item], *, concurrency: int, limit_s: float
) -> Iterator[tuple[int, Result | None]]:
    """Call a function with each item, in threads of their own, and yield its results as they come.

    A call that is given up goes on in its thread, which ends with the process at the latest; its result is dropped.

    Args:
        function: may block for any time.
        items: its arguments.
        concurrency: maximum number of calls at once, not counting those that were given up.
        limit_s: seconds after which a call is given up.

    Returns: positions of items with their results; None for a call that was given up.

    Raises:
        Exception: what a call has raised.
    """
    results: SimpleQueue[tuple[int, Result | None, BaseException | None]] = SimpleQueue()
    waiting = iter(range(len(items)))
    started: dict[int, float] = {}

    def call(position: int) -> None:
        try:
            results.put((position, function(items[position]), None))
        except BaseException as error:
            results.put((position, None, error))

    def start_next() -> None:
        if (position := next(waiting, None)) is not None:
            started[position] = time.monotonic()
            threading.Thread(target=call, args=(position,), name=f"call-{position}", daemon=True).start()

    for _ in range(concurrency):
        start_next()
    while started:
        first = min(started, key=started.__getitem__)
        try:
            position, result, error = results.get(timeout=max(0.0, started[first] + limit_s - time.monotonic()))
        except Empty:
            position, result, error = first, None, None
        if started.pop(position, None) is None:
            continue  # it was given up before
        if error is not None:
            deadline = max(started.values(), default=0.0) + limit_s
            with suppress(Empty):
                while started:  # what has begun ends before its connections are closed
                    started.pop(results.get(timeout=max(0.0, deadline - time.monotonic()))[0], None)
            raise error
        start_next()
        yield position, result
