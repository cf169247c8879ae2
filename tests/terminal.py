"""A pseudo-terminal for a command, with a record of its screens."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Sequence

import pyte


def _heed_interrupts() -> None:
    """Reset the handling of SIGINT, which background processes inherit as ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """Runs a command on a pty of a given size and records the screens.

    Attributes:
        screens: lines of each screen that differs from the previous one.
        raw: every byte that the command wrote.
    """

    def __init__(self, command: Sequence[str], columns: int, lines: int) -> None:
        self.screens: list[list[str]] = []
        self.raw = b""
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=_heed_interrupts,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # on Linux: the other end is closed
                return
            if not data:
                return
            self.raw += data
            self._stream.feed(data)
            shown = [line.rstrip() for line in self._screen.display]
            if not self.screens or shown != self.screens[-1]:
                self.screens.append(shown)

    def wait(self, timeout_s: float = 240.0) -> int:
        """Wait for the command's end and return its exit code, after reading all output."""
        code = self.process.wait(timeout_s)
        self._reader.join(10.0)
        os.close(self._master)
        return code

    def wait_for(self, seen: Callable[[list[str]], bool], timeout_s: float = 120.0) -> None:
        """Wait until one of the latest screens fulfils the condition."""
        deadline = time.monotonic() + timeout_s
        while not any(seen(screen) for screen in self.screens[-50:]):
            assert self.process.poll() is None, "\n".join(self.screens[-1] if self.screens else ["no output"])
            assert time.monotonic() < deadline, "\n".join(self.screens[-1] if self.screens else ["no output"])
            time.sleep(0.05)

    @property
    def text(self) -> str:
        """The raw output."""
        return self.raw.decode(errors="replace")
