"""The settings that one run may take over from the record of another: what was trained, never whom to trust.

What leads to code that is run, or to an address that is called, is the caller's own: it is said on the command, or off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spin_components.errors import IntegrityError

SECTIONS = (
    *("run", "model", "data", "warm_up", "spin", "objective", "generation", "training", "lora", "validation"),
    *("evaluation", "selection", "hardware", "placement"),
)
"""Sections that are taken over; `tracking`, `control`, and any other table of a record, are not."""

OWN = (
    *("run.uri", "model.trust_remote_code"),
    *("evaluation.trust_task_code", "evaluation.task_files", "evaluation.judge_url", "evaluation.judge_model"),
)
"""Settings of those sections that are not taken over."""

FIRST: dict[str, dict[str, Any]] = {
    "data": {"split": "shuffle", "shard_by": "records"},
    "generation": {"block_size": 0},
}
"""What runs did that were recorded before these settings existed."""


def inherited(recorded: object, *, source: str) -> dict[str, dict[str, Any]]:
    """Return those settings of a record that another run may take over, by section.

    Args:
        recorded: tables by section, as `run.json` holds them.
        source: address of the record, for the error.

    Raises:
        IntegrityError: the record is not made of tables.
    """
    return {
        section: {
            key: value for key, value in {**FIRST.get(section, {}), **table}.items() if f"{section}.{key}" not in OWN
        }
        for section, table in _tables(recorded, source).items()
        if section in SECTIONS
    }


def left_out(recorded: object, *, source: str) -> list[str]:
    """Return the names of those settings that a record turns on and another run does not take over.

    Raises:
        IntegrityError: the record is not made of tables.
    """
    tables = _tables(recorded, source)
    names = [name for name in OWN if name != "run.uri"]
    names += [f"tracking.{key}" for key in ("tensorboard", "mlflow_uri", "wandb_project")]
    return [name for name in names if tables.get(name.partition(".")[0], {}).get(name.partition(".")[2])]


def _tables(recorded: object, source: str) -> dict[str, dict[str, Any]]:
    if isinstance(recorded, Mapping) and all(isinstance(table, Mapping) for table in recorded.values()):
        return {str(section): dict(table) for section, table in recorded.items()}
    raise IntegrityError(f"{source}: its settings are not tables by section; restore the original run.json")
