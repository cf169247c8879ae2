"""What a check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """Whether a run can start in spite of what was found."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a preflight.

    Attributes:
        subject: what was looked at.
        verdict: only `FAIL` keeps a run from being submitted.
        message: what was found, and what was expected where it is something else.
        remedy: what to do; empty where there is nothing to do.
    """

    subject: str
    verdict: Verdict
    message: str
    remedy: str = ""


def passed(subject: str, message: str) -> Finding:
    """It is as it should be."""
    return Finding(subject, Verdict.PASS, message)


def warned(subject: str, message: str, remedy: str) -> Finding:
    """It could not be looked at, or may not matter."""
    return Finding(subject, Verdict.WARN, message, remedy)


def failed(subject: str, message: str, remedy: str) -> Finding:
    """A run would not come to its end."""
    return Finding(subject, Verdict.FAIL, message, remedy)
