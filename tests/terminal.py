"""A real terminal for a command: a pty whose screen is kept as it changes."""

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
    """As under a shell of one's own: tests that run in the background have passed on that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """Runs a command on a pty of a given size and follows what a person would see.

    Attributes:
        screens: each picture that was different from the one before, as lines.
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
            except OSError:  # how Linux says that nobody has the other end open
                return
            if not data:
                return
            self.raw += data
            self._stream.feed(data)
            shown = [line.rstrip() for line in self._screen.display]
            if not self.screens or shown != self.screens[-1]:
                self.screens.append(shown)

    def wait(self, timeout_s: float = 240.0) -> int:
        """The command's exit code, once all it wrote has been read."""
        code = self.process.wait(timeout_s)
        self._reader.join(10.0)
        os.close(self._master)
        return code

    def wait_for(self, seen: Callable[[list[str]], bool], timeout_s: float = 120.0) -> None:
        """Return once some picture was as it should be."""
        deadline = time.monotonic() + timeout_s
        while not any(seen(screen) for screen in self.screens[-50:]):
            assert self.process.poll() is None, "\n".join(self.screens[-1] if self.screens else ["nothing was shown"])
            assert time.monotonic() < deadline, "\n".join(self.screens[-1] if self.screens else ["nothing was shown"])
            time.sleep(0.05)

    @property
    def text(self) -> str:
        """All it wrote, as it is."""
        return self.raw.decode(errors="replace")
