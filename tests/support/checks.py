"""Helpers for the results of `spin-pipeline preflight`."""

from __future__ import annotations

from collections.abc import Callable

Check = Callable[..., tuple[int, list[dict[str, str]]]]
"""Runs the command with additional arguments; returns its exit code and findings."""


def findings(checks: list[dict[str, str]], subject: str) -> list[tuple[str, str]]:
    """Verdict and message of the findings on a subject."""
    return [(one["verdict"], one["message"]) for one in checks if one["subject"] == subject]


def problems(checks: list[dict[str, str]]) -> list[str]:
    """Findings that did not pass, except the storage warning: tests have no keys."""
    return [
        f"{one['subject']}: {one['message']}"
        for one in checks
        if one["verdict"] != "pass" and (one["subject"], one["verdict"]) != ("storage", "warn")
    ]
