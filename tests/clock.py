"""Time that stands still until a test moves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Clock:
    """Takes the place of the `time` module in another module.

    Args:
        now: seconds; the same for both clocks.
        on_sleep: called in each sleep, before time goes on by its length.
    """

    now: float = 1.8e9
    on_sleep: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        self.on_sleep()
        self.now += seconds
