"""The result of a check: a verdict, a message, and a remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CheckStatus(StrEnum):
    """Whether a run can start."""

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
    verdict: CheckStatus
    message: str
    remedy: str = ""


def passed(subject: str, message: str) -> Finding:
    """A finding: nothing is wrong."""
    return Finding(subject, CheckStatus.PASS, message)


def warned(subject: str, message: str, remedy: str) -> Finding:
    """A finding: the check could not be made, or what it shows may not matter."""
    return Finding(subject, CheckStatus.WARN, message, remedy)


def failed(subject: str, message: str, remedy: str) -> Finding:
    """A finding: a run would not finish."""
    return Finding(subject, CheckStatus.FAIL, message, remedy)
