"""A real terminal for a command: a pty, and the picture that a person would see on it."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

import pyte

_HOME = b"\x1b[H"
"""What each frame of a moving picture begins with."""


def _heed_interrupts() -> None:
    """Reset the handling of SIGINT, which background processes inherit as ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """Runs a command on a pty of a given size and keeps what it writes; ends it where `with` does.

    Args:
        variables: of its environment, beside this process's own.

    Attributes:
        raw: every byte that the command wrote.
    """

    def __init__(self, command: Sequence[str], columns: int, lines: int, **variables: str) -> None:
        self.raw = b""
        self._size = columns, lines
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1", **variables}
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        os.close(self._master)

    def _read(self) -> None:
        with suppress(OSError):  # how Linux says that nobody has the other end open
            while data := os.read(self._master, 65536):
                self.raw += data

    def wait(self) -> int:
        """The command's exit code, once all it wrote has been read."""
        code = self.process.wait()
        self._reader.join()
        return code

    def picture(self) -> list[str]:
        """What is shown: the newest whole picture of one that moves, else all that was written, as lines."""
        raw = self.raw
        end = raw.rfind(_HOME)
        start = raw.rfind(_HOME, 0, max(end, 0))
        screen = pyte.Screen(*self._size)
        pyte.ByteStream(screen).feed(raw if start < 0 else raw[start:end])
        return [line.rstrip() for line in screen.display]

    def wait_for(self, seen: Callable[[list[str]], bool]) -> list[str]:
        """The first picture from now on that is as it should be."""
        shown = self.picture()
        try:
            while not seen(shown):
                assert self._reader.is_alive(), f"it ended with {self.process.wait()}"
                time.sleep(0.05)
                shown = self.picture()
        except BaseException as error:
            error.add_note("\n".join(["shown last:", *shown]))
            raise
        return shown

    @property
    def text(self) -> str:
        """The raw output."""
        return self.raw.decode(errors="replace")

    @property
    def last_words(self) -> list[str]:
        """The lines it wrote after its moving picture, or all of them, without colours."""
        return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self.text.rpartition("\x1b[?1049l")[2]).splitlines()
