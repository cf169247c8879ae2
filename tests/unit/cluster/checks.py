"""What `spin-pipeline preflight` found, as tests ask about it."""

from __future__ import annotations

from collections.abc import Callable

Check = Callable[..., tuple[int, list[dict[str, str]]]]
"""Types the command with these arguments beside the usual ones; gives its exit code and its findings."""


def found(checks: list[dict[str, str]], subject: str) -> list[tuple[str, str]]:
    """Verdict and message of the findings on a subject."""
    return [(one["verdict"], one["message"]) for one in checks if one["subject"] == subject]


def wrong(checks: list[dict[str, str]]) -> list[str]:
    """What is not as it should be, without the storage, for which the tests have no keys."""
    return [
        f"{one['subject']}: {one['message']}"
        for one in checks
        if one["verdict"] != "pass" and (one["subject"], one["verdict"]) != ("storage", "warn")
    ]
