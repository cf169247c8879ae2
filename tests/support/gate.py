"""A request to storage that is held until a test lets it pass: the test decides when a run goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

from faults.harms import Rule


class Gate:
    """Holds every request that matches, its repetitions too, from the first one until it is opened.

    Args:
        pattern: searched in `METHOD /bucket/key?query`.

    Attributes:
        rule: for the proxy that the requests go through.
    """

    def __init__(self, pattern: str) -> None:
        self.rule = Rule(pattern, "pause", times=sys.maxsize, strike=self._hold)
        self._reached, self._opened = threading.Event(), threading.Event()

    def wait(self, process: subprocess.Popen[Any]) -> None:
        """Return once a process has sent such a request; it must not end before."""
        while not self._reached.wait(0.1):
            assert process.poll() is None, f"it ended with {process.returncode} before {self.rule.pattern}"

    def open(self) -> None:
        """Let what is held pass, and whatever comes."""
        self._opened.set()

    def _hold(self) -> None:
        self._reached.set()
        self._opened.wait()
