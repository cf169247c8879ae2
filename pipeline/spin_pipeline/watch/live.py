"""Shows a run's events: as a live view on a terminal, as lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live

from spin_pipeline.watch.lines import LinePrinter
from spin_pipeline.watch.model import RunModel
from spin_pipeline.watch.view import MIN_WIDTH, Frame, draw

_FRAMES_A_SECOND = 8
_STYLES = {"starting": "cyan", "running": "cyan", "done": "green", "failed": "red"}


class Display(Protocol):
    """Shows the events of a run as they arrive.

    Attributes:
        wants_history: whether it needs the events from before it was opened.
    """

    wants_history: bool

    def show(self, events: Sequence[dict[str, Any]]) -> None:
        """Show new events, ordered by time."""

    def state(self, text: str) -> None:
        """Set the state of the run in a few words; it is "running" at first."""

    def interrupted(self) -> None:
        """Show that the run was interrupted."""

    def close(self) -> None:
        """Restore the terminal and leave the final state on it."""


def open_display(console: Console, uri: str) -> Display:
    """A live view if the console is a terminal that supports it, else a line printer."""
    is_supported = console.is_terminal and not console.is_dumb_terminal and not console.options.ascii_only
    return LiveView(console, uri) if is_supported and console.width >= MIN_WIDTH else LinePrinter(console)


class LiveView:
    """Redraws the whole screen several times a second, and leaves the last frame in the terminal's scrollback."""

    wants_history = True

    def __init__(self, console: Console, uri: str) -> None:
        self._console, self._uri = console, uri
        self._model = RunModel()
        self._state, self._is_last = "running", False
        self._notices = _Notices()
        self._live: Live | None = None
        logging.getLogger("spin_components").addHandler(self._notices)

    def show(self, events: Sequence[dict[str, Any]]) -> None:
        self._model.apply(events)
        if self._live is None:
            self._live = Live(self, console=self._console, screen=True, refresh_per_second=_FRAMES_A_SECOND)
            self._live.start()

    def state(self, text: str) -> None:
        self._state = text

    def interrupted(self) -> None:
        self._state = "interrupted"
        self.close()
        self._console.print("interrupted; the same command resumes from the last save", style="yellow")

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
    """Keeps the newest warning logged by this process, e.g. that storage does not answer."""

    _SHOWN_S = 30.0

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._message, self._logged_at = "", 0.0

    def emit(self, record: logging.LogRecord) -> None:
        self._message, self._logged_at = record.getMessage(), time.monotonic()

    @property
    def latest(self) -> str:
        """The newest warning if it is less than 30 s old, else empty."""
        return self._message if time.monotonic() - self._logged_at < self._SHOWN_S else ""
