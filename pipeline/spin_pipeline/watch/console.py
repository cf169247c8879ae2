"""The console that commands print to."""

from __future__ import annotations

from rich.console import Console


def plain_console(width: int | None = None) -> Console:
    """A console that prints text as it is: brackets and colons in it are no markup and no emoji."""
    return Console(width=width, markup=False, emoji=False)
