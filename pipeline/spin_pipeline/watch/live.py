"""A run's events on a terminal: a picture that moves, or lines where there is no terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live

from spin_pipeline.progress import Narrator
from spin_pipeline.watch.model import RunModel
from spin_pipeline.watch.view import MIN_WIDTH, Frame, draw

_FRAMES_A_SECOND = 8
_STYLES = {"starting": "cyan", "running": "cyan", "done": "green", "failed": "red"}


class Display(Protocol):
    """Shows events as they come.

    Attributes:
        wants_history: whether events of before it was opened are of use to it.
    """

    wants_history: bool

    def tell(self, events: Sequence[dict[str, Any]]) -> None:
        """Show some events."""

    def state(self, text: str) -> None:
        """Say in a few words how the run stands: "running" until told otherwise."""

    def interrupted(self) -> None:
        """Say that the run was asked to end."""

    def close(self) -> None:
        """Leave the terminal as it was, with the last picture on it."""


def open_display(console: Console, uri: str) -> Display:
    """A moving picture on a terminal that can show one, else lines."""
    is_able = console.is_terminal and not console.is_dumb_terminal and not console.options.ascii_only
    return LiveView(console, uri) if is_able and console.width >= MIN_WIDTH else Narrator(console)


class LiveView:
    """Redraws the whole screen some times a second; at the end the last picture stays in the terminal's history."""

    wants_history = True

    def __init__(self, console: Console, uri: str) -> None:
        self._console, self._uri = console, uri
        self._model = RunModel()
        self._state, self._is_last = "running", False
        self._notices = _Notices()
        self._live: Live | None = None
        logging.getLogger("spin_components").addHandler(self._notices)

    def tell(self, events: Sequence[dict[str, Any]]) -> None:
        self._model.take(events)
        if self._live is None:
            self._live = Live(self, console=self._console, screen=True, refresh_per_second=_FRAMES_A_SECOND)
            self._live.start()

    def state(self, text: str) -> None:
        self._state = text

    def interrupted(self) -> None:
        self._state = "interrupted"
        self.close()
        self._console.print("interrupted; the same command goes on from the last save", style="yellow")

    def close(self) -> None:
        logging.getLogger("spin_components").removeHandler(self._notices)
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        self._is_last = True
        if self._state == "running":
            self._state = self._model.outcome or "ended"
        self._console.print(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        state = "starting" if self._state == "running" and self._model.started is None else self._state
        frame = Frame(
            uri=self._uri,
            now=time.time(),
            state=state,
            style=_STYLES.get(state, "yellow"),
            notice="" if self._is_last else self._notices.latest,
            is_last=self._is_last,
        )
        height = 1000 if self._is_last else options.height or console.height
        for line in draw(self._model, frame, options.max_width, height):
            line.no_wrap, line.overflow = True, "crop"
            yield line


class _Notices(logging.Handler):
    """Keeps what this process itself has to say: storage that does not answer, for example."""

    _SHOWN_S = 30.0

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._message, self._said = "", 0.0

    def emit(self, record: logging.LogRecord) -> None:
        self._message, self._said = record.getMessage(), time.monotonic()

    @property
    def latest(self) -> str:
        """The newest, for a while."""
        return self._message if time.monotonic() - self._said < self._SHOWN_S else ""
