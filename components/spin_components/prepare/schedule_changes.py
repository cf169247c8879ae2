"""Inputs of a run that has begun: schedules may change for later iterations, and newer settings are absent."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from spin_components.errors import IntegrityError
from spin_components.prepare.moved_inputs import kept_addresses
from spin_components.settings.run import SCHEDULES
from spin_components.settings.section import per_iteration
from spin_components.settings.settings import Settings
from spin_components.settings.training import ControlSettings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest

FORMER_DEFAULTS = {"validation.num_samples": 32}
"""Defaults of earlier releases that differ from the present ones: a run that began with one keeps it, while the setting
has its present default."""


def as_begun(run: RunStore, inputs: dict[str, Any]) -> dict[str, Any]:
    """The run's inputs, with the recorded value of every schedule that differs only for iterations that have not begun.

    So a list may grow with `spin.max_iterations`, and a number become a list. The first iteration counts as begun.
    Model and data may be elsewhere: where their files are the same, their recorded addresses are kept.
    A setting that did not exist when the run began is left out while it has its default, and one whose default has
    changed since keeps the former one while it has the present one.

    Args:
        run: the run, which may still be empty.
        inputs: every setting by its name, `section.key`.
    """
    if not (run.exists(layout.RUN) and run.exists(layout.DATA_MANIFEST)):
        return inputs
    recorded, before = run.read_json(layout.RUN)["settings"], read_manifest(run, layout.DATA_MANIFEST).inputs
    begun = {0, *(int(key.split("/")[1]) for key in run.list("iterations", "*/generations/*.json"))}
    kept = kept_addresses(before, inputs)
    for name in SCHEDULES:
        section, key = name.split(".")
        if name in before and key in recorded[section]:
            was, now = recorded[section][key], inputs[name]
            shared = [t for t in begun if _covers(was, t) and _covers(now, t)]
            if all(per_iteration(was, t) == per_iteration(now, t) for t in shared):
                kept[name] = before[name]
    defaults = _defaults()
    kept |= {
        name: former
        for name, former in FORMER_DEFAULTS.items()
        if before.get(name) == former and inputs.get(name) == defaults[name]
    }
    added = {name for name in inputs.keys() - before.keys() if name in defaults and inputs[name] == defaults[name]}
    return {name: value for name, value in {**inputs, **kept}.items() if name not in added}


def _defaults() -> dict[str, Any]:
    """The default of every setting that has one, by its name."""
    return {
        f"{section}.{key}": field.get_default(call_default_factory=True)
        for section, table in Settings.model_fields.items()
        if isinstance(table.annotation, type) and issubclass(table.annotation, BaseModel)
        for key, field in table.annotation.model_fields.items()
        if not field.is_required()
    }


def _covers(value: Any, iteration: int) -> bool:
    """Whether a schedule has a value for an iteration; a list for fewer iterations may end before it."""
    return not isinstance(value, list) or iteration < len(value)


def record_schedules(run: RunStore, settings: Settings) -> None:
    """Write the schedules, the number of iterations, `[selection]` and `[control]` of this attempt to `run.json`.

    Raises:
        IntegrityError: `run.json` trusts the code of the model's folder, and this attempt does not.
    """
    record, now = run.read_json(layout.RUN), settings.model_dump(mode="json")
    if record["settings"]["model"].get("trust_remote_code", False) and not settings.model.trust_remote_code:
        raise IntegrityError(
            f"{run.uri_of(layout.RUN)} has model.trust_remote_code = true, but this command does not and the run began "
            "without it: somebody changed the record. Restore it"
        )
    changed = False
    for name in (*SCHEDULES, "spin.max_iterations"):
        section, key = name.split(".")
        if record["settings"][section].get(key) != now[section][key]:
            record["settings"][section][key] = now[section][key]
            changed = True
    if record["settings"].get("selection") != now["selection"]:  # every iteration is judged anew by these rules
        record["settings"]["selection"] = now["selection"]
        changed = True
    if record["settings"].get("control", ControlSettings().model_dump(mode="json")) != now["control"]:
        record["settings"]["control"] = now["control"]
        changed = True
    if changed:
        run.write_json(layout.RUN, record)
