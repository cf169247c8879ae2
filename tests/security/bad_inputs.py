"""The corpus of bad inputs: what is wrong, and the message that must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECRET = "sk-live-0123456789abcdef"
"""Part of every input that holds a key; no message may show it."""


@dataclass(frozen=True, slots=True)
class BadInput:
    """One bad input.

    Attributes:
        name: of the case, unique.
        use: has the program read the input; takes an empty folder. Returns arguments of the command line to run, or
            None where it raises the error itself.
        message: pattern of the one line that must come of it.
        exit_code: of the program.
    """

    name: str
    use: Callable[[Path], list[str] | None]
    message: str
    exit_code: int = 2

    def __str__(self) -> str:
        return self.name
