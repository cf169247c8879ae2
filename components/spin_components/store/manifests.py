"""Manifests: the inputs and outputs of a finished step. A step writes its manifest last, so it marks completion."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from spin_components import __version__
from spin_components.errors import InputsChangedError, IntegrityError
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest
from spin_components.store.keys import flaw_of, shown


def now() -> str:
    """Return the current time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Manifest(BaseModel):
    """Record of one finished step: its inputs, outputs, results and cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    inputs: dict[str, Any] = Field(description="settings and digests that the outputs depend on, flat")
    outputs: dict[str, FileDigest] = Field(default_factory=dict, description="digests of the outputs by key")
    facts: dict[str, Any] = Field(default_factory=dict, description="results: metrics, counts, addresses")
    duration_s: float = 0.0
    machine: dict[str, Any] = Field(default_factory=dict, description="hardware of the step; see `machine.describe`")
    finished_at: str = Field(default_factory=now)
    version: str = __version__

    @field_validator("outputs")
    @classmethod
    def _check_keys(cls, outputs: dict[str, FileDigest]) -> dict[str, FileDigest]:
        for key in outputs:
            if flaw := flaw_of(key):
                raise ValueError(f"the file {shown(key)} {flaw}, expected a path inside the run")
        return outputs

    def outputs_below(self, folder: str) -> dict[str, FileDigest]:
        """Return digests of the outputs below a folder, by path relative to it."""
        prefix = folder.rstrip("/") + "/"
        return {key.removeprefix(prefix): file for key, file in self.outputs.items() if key.startswith(prefix)}


def read_manifest(run: RunStore, key: str) -> Manifest:
    """Read a manifest.

    Raises:
        IntegrityError: it is missing or invalid.
    """
    try:
        return Manifest.model_validate(run.read_json(key))
    except ValidationError as error:
        problems = "; ".join(f"{shown(str(detail['loc']))}: {detail['msg'][:200]}" for detail in error.errors()[:3])
        raise IntegrityError(
            f"{run.uri_of(key)} is not a manifest ({problems}); delete it to have its step run again"
        ) from error


def finished(run: RunStore, key: str, inputs: dict[str, Any]) -> Manifest | None:
    """Return the manifest of a step that has finished with these inputs; None if it has not finished.

    Raises:
        InputsChangedError: the step finished with other inputs; the message lists the differences.
    """
    if not run.exists(key):
        return None
    manifest = read_manifest(run, key)
    if differences := differing(manifest.inputs, inputs):
        raise InputsChangedError(
            f"{run.uri_of(key)} was made from other inputs: {'; '.join(differences)}. "
            "Finished outputs are neither reused nor overwritten: restore the previous inputs, choose another run.uri, "
            "or start a new run from a finished iteration with --fork-from RUN_URI --iteration N."
        )
    return manifest


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describe the differences between two sets of inputs, one line per name."""
    names = sorted(before.keys() | now.keys())
    return [
        f"{name} was {_short(before.get(name))}, now {_short(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
