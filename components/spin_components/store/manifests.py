"""Manifests: what a finished step was made from and what it wrote. Written last, so a manifest means complete."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spin_components import __version__
from spin_components.errors import InputsChangedError, IntegrityError
from spin_components.store.digests import FileDigest
from spin_components.store.run import RunStore


def now() -> str:
    """The time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Manifest(BaseModel):
    """One finished step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    inputs: dict[str, Any] = Field(description="settings and digests that the outputs depend on, flat")
    outputs: dict[str, FileDigest] = Field(default_factory=dict, description="key below the run to digest")
    facts: dict[str, Any] = Field(default_factory=dict, description="what is worth knowing: metrics, counts, addresses")
    duration_s: float = 0.0
    machine: dict[str, Any] = Field(default_factory=dict, description="what the step had; see `machine.describe`")
    finished_at: str = Field(default_factory=now)
    version: str = __version__

    def outputs_below(self, folder: str) -> dict[str, FileDigest]:
        """Digests of the files below a folder, relative to it."""
        prefix = folder.rstrip("/") + "/"
        return {key.removeprefix(prefix): file for key, file in self.outputs.items() if key.startswith(prefix)}


def read_manifest(run: RunStore, key: str) -> Manifest:
    """Read a manifest that must be there.

    Raises:
        IntegrityError: it is missing or unreadable.
    """
    try:
        return Manifest.model_validate(run.read_json(key))
    except ValidationError as error:
        problems = "; ".join(f"{detail['loc']}: {detail['msg']}" for detail in error.errors()[:3])
        raise IntegrityError(
            f"{run.uri_of(key)} is no manifest ({problems}); delete it to have its step run again"
        ) from error


def finished(run: RunStore, key: str, inputs: dict[str, Any]) -> Manifest | None:
    """The manifest of a step that needs no redoing, or None where there is none.

    Raises:
        InputsChangedError: the step finished with other inputs; lists each difference.
    """
    if not run.exists(key):
        return None
    manifest = read_manifest(run, key)
    if differences := differing(manifest.inputs, inputs):
        raise InputsChangedError(
            f"{run.uri_of(key)} was made from other inputs: {'; '.join(differences)}. "
            "What is finished is neither reused nor overwritten: go back to those, choose another run.uri, or start a "
            "new run from a finished iteration with --fork-from RUN_URI --iteration N."
        )
    return manifest


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each name whose value differs."""
    names = sorted(before.keys() | now.keys())
    return [
        f"{name} was {_short(before.get(name))}, now {_short(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
