"""An epoch to train, as every rank gets it in JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from spin_components.algorithm.trainer_state import TrainerState
from spin_components.model.lora.files import Base
from spin_components.record.decisions import name_of
from spin_components.settings.settings import Settings
from spin_components.store import layout


class AdapterJob(BaseModel):
    """The adapter that an epoch trains instead of all weights.

    Attributes:
        base: the model below it: the reference of the iteration, in all of its epochs.
        folder: of the adapter to continue; None for a fresh one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Base
    folder: Path | None


class EpochJob(BaseModel):
    """One epoch to train.

    Attributes:
        run_uri: the run.
        attempt: owner of the run's lease.
        step: name of the step that trains it.
        iteration: t; `layout.WARM_UP`, or that of a control, trains on human answers alone.
        epoch: within the iteration.
        policy: folder of the weights to begin with: of a save inside the epoch when resuming, where it is whole;
            with an adapter, of the model below it.
        adapter: the adapter to train; None trains all weights.
        like: folder of the policy that the epoch began with; files beside the weights are copied from it.
        trainer: folder of trainer state to load; None for a fresh optimizer.
        parts: files of all ranks with optimizer state and, of a save by several ranks inside the epoch, weights.
        scratch: a free path on this machine, for saves before they are stored; each rank has a folder there.
        first_step: of the epoch that is still to do; above 0 when resuming inside it.
        state: counters before that step.
        inputs: of the epoch's manifest.
        settings: of the run, with this attempt's hardware.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    run_uri: str
    attempt: str
    step: str = "train-epoch"
    iteration: int
    epoch: int
    policy: Path
    adapter: AdapterJob | None = None
    like: Path
    trainer: Path | None
    parts: tuple[Path, ...] = ()
    scratch: Path
    first_step: int
    state: TrainerState
    inputs: dict[str, Any]
    settings: Settings

    @property
    def where(self) -> str:
        """Iteration and epoch, for errors."""
        return f"{name_of(self.iteration)}, epoch {self.epoch}"

    @property
    def labels(self) -> dict[str, int]:
        """Fields of the epoch's events; the warm-up has no iteration."""
        if self.iteration == layout.WARM_UP:
            return {"epoch": self.epoch}
        controlled = layout.controlled(self.iteration)
        return {"iteration": self.iteration if controlled is None else controlled, "epoch": self.epoch}
