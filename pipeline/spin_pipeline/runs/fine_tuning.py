"""Status of a run's warm-up and controls, and the measures of answers that every model's status has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from spin_components.record.controls import compare_controls
from spin_components.record.history import History
from spin_components.settings.training import ControlSettings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import Manifest, read_manifest


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Answers(Record):
    """Measures of a model's answers to held-out prompts, by the names of `validate`; None where it gave none."""

    length_ratio: float | None = None
    repetition_rate: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    ended_share: float | None = None
    chrf: float | None = None
    match: float | None = None
    greedy_length_ratio: float | None = None
    greedy_repetition_rate: float | None = None
    greedy_distinct_1: float | None = None
    greedy_distinct_2: float | None = None
    greedy_ended_share: float | None = None
    greedy_chrf: float | None = None
    greedy_match: float | None = None


class WarmUpStatus(Answers):
    """The warm-up, whose policy iteration 0 starts from.

    Attributes:
        val_loss: of the epoch that was kept; the base model's where none has a lower one. None until it is finished.
        epoch: the epoch that was kept; None for none.
        uri: address of its policy.
        epochs: `val_loss`, `num_steps` and `train_s` of each epoch that is done.
        num_steps: optimizer steps; they do not count among the run's.
        ended_by: `patience` or `max_epochs`; empty until it is finished.
        evaluation: as in `IterationStatus`; only where its results decide.
    """

    val_loss: float | None = None
    epoch: int | None = None
    uri: str = ""
    epochs: list[dict[str, Any]] = Field(default_factory=list)
    num_steps: int = 0
    ended_by: str = ""
    evaluation: dict[str, Any] | None = None


class ControlStatus(Answers):
    """The control of an iteration.

    Attributes:
        val_loss: None until it is validated.
        num_steps: optimizer steps of this control.
        uri: address of its policy.
        changes: paired changes from the control to the iteration, by measure, with the `verdict` on self-play: better,
            worse or no clear change.
        sentence: whether self-play did better than the control; empty until both are validated.
        evaluation: as in `IterationStatus`; only where its results decide.
    """

    iteration: int
    val_loss: float | None = None
    num_steps: int = 0
    uri: str = ""
    changes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sentence: str = ""
    evaluation: dict[str, Any] | None = None


def evaluation_facts(manifest: Manifest | None) -> dict[str, Any] | None:
    """Results of an evaluation, as a status shows them; None without one."""
    if manifest is None:
        return None
    return {name: value for name, value in manifest.facts.items() if name != "policy_uri"}


def warm_up_status(history: History) -> WarmUpStatus | None:
    """Status of the warm-up; None without one."""
    warmed = history.warm_up
    if warmed is None:
        return None
    epochs = [
        {name: each.trained.facts[name] for name in ("val_loss", "num_steps", "train_s")} for each in warmed.epochs
    ]
    facts = warmed.published.facts if warmed.published else {}
    known = {
        "evaluation": evaluation_facts(warmed.evaluated),
        "epochs": epochs,
        "num_steps": sum(int(each["num_steps"]) for each in epochs),
    }
    if facts:
        known |= {"uri": facts["policy_uri"], **{name: facts[name] for name in ("val_loss", "epoch", "ended_by")}}
    return WarmUpStatus.model_validate({**(warmed.check.facts if warmed.check else {}), **known})


def control_status(run: RunStore, history: History) -> list[ControlStatus]:
    """Status of every control that is trained, with its comparison."""
    compared = {each.iteration: each for each in compare_controls(run, history)}
    rows = []
    for t, control in history.controls.items():
        if control.published is None:
            continue
        facts = control.published.facts
        changes = {
            name: {**asdict(change), "verdict": compared[t].verdict(name)}
            for name, change in (compared[t].changes if t in compared else {}).items()
        }
        known = {"iteration": t, "num_steps": facts["num_steps"], "uri": facts["policy_uri"], "changes": changes}
        known |= {"sentence": compared[t].sentence if t in compared else ""}
        known |= {"evaluation": evaluation_facts(control.evaluated)}
        rows.append(ControlStatus.model_validate({**(control.check.facts if control.check else {}), **known}))
    return rows


def is_control_missing(run: RunStore, iterations: Sequence[int]) -> bool:
    """Whether the attempt is configured to have controls and one is missing, or not validated."""
    settings = ControlSettings.model_validate(run.read_json(layout.ATTEMPT).get("control", {}))
    if not settings.sft:
        return False
    keys = [layout.control_manifest(t) for t in iterations]
    if not all(run.exists(key) for key in keys):
        return True
    epochs = [int(read_manifest(run, key).facts["epoch"]) for key in keys]
    validations = [layout.validation(layout.control(t), epoch) for t, epoch in zip(iterations, epochs, strict=True)]
    return not all(run.exists(key) for key in validations)
