"""Text formatting for terminals: sanitising, fitting to a width, sparklines, durations and numbers."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

_BLOCKS = "▁▂▃▄▅▆▇█"
_ALLOWED = "\u200d"  # zero-width joiner, used in emoji


def clean(text: object) -> str:
    """One line of text without characters that move the cursor, change colours or the reading direction.

    Line ends become `⏎`, other white space a space. Control characters become their Unicode pictures (ESC is `␛`), or
    `�` if they have none.
    """
    lines = (" ".join(line.split()) for line in str(text).replace("\r\n", "\n").split("\n"))
    return harmless(" ⏎ ".join(line for line in lines if line))


def harmless(text: str) -> str:
    """The text with control characters replaced as in `clean`, but line ends kept."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    number = ord(character)
    if number < 0x20 and character != "\n":
        return chr(0x2400 + number)
    if number == 0x7F:
        return "␡"
    if (
        character != "\n"
        and unicodedata.category(character) in ("Cc", "Cf", "Cn", "Cs", "Co", "Zl", "Zp")
        and character not in _ALLOWED
    ):
        return "�"
    return character


def fit(text: str, width: int) -> str:
    """Text of exactly `width` cells: cut with `…`, or padded with spaces."""
    if cell_len(text) > width:
        return set_cell_size(text, max(width - 1, 0)) + "…" * min(width, 1)
    return text + " " * (width - cell_len(text))


def wrapped(text: str, width: int, num_lines: int) -> list[str]:
    """Break text between words into at most `num_lines` lines of `width` cells; the last is cut with `…`."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < num_lines:
        if cell_len(rest) <= width or len(lines) == num_lines - 1:
            lines.append(fit(rest, width).rstrip())
            break
        head = set_cell_size(rest, width).rstrip("\0")
        cut = head.rfind(" ")
        head = head[:cut] if cut > width // 2 else head
        taken = len(head.rstrip()) or 1
        lines.append(rest[:taken])
        rest = rest[taken:].lstrip()
    return lines


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as at most `width` block characters, scaled from the lowest to the highest; more values are averaged."""
    if len(values) > width:
        edges = [column * len(values) // width for column in range(width + 1)]
        values = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    if not values:
        return ""
    low, high = min(values), max(values)
    if not low < high:
        return _BLOCKS[0] * len(values)
    return "".join(_BLOCKS[min(7, int((value - low) / (high - low) * 8))] for value in values)


def duration(seconds: float) -> str:
    """Format seconds as `0.4 s`, `1:05`, `2:03:04` or `3 d 4 h`."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 86400:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 86400} d {whole // 3600 % 24} h"


def number(value: float) -> str:
    """Format a number with four significant digits."""
    size = abs(value)
    if value == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:#.4g}"
