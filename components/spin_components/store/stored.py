"""A small file as it was read, with what a conditional write and the age of a lease need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Guard = Callable[[], None]
"""Callback before a write; raises if the right to write is lost."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A small file of a run.

    Attributes:
        content: its bytes.
        tag: changes with every write.
        written_at: time of the last write by the storage's clock, seconds since 1970; None if the storage does not
            report it.
        now: time of the reading by the same clock; None as above.
    """

    content: bytes
    tag: str
    written_at: float | None = None
    now: float | None = None
