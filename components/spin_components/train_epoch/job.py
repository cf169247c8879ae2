"""What every rank of an epoch is told, as one JSON value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from spin_components.algorithm.trainer_state import TrainerState
from spin_components.lora.files import Base
from spin_components.settings import Settings


class AdapterJob(BaseModel):
    """The adapter that an epoch trains instead of all weights.

    Attributes:
        base: what it sits on: the reference of the iteration, in all of its epochs.
        folder: of the adapter to go on from; None for a fresh one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Base
    folder: Path | None


class EpochJob(BaseModel):
    """One epoch to train.

    Attributes:
        run_uri: the run.
        attempt: whoever holds the run's lease.
        iteration: t.
        epoch: within the iteration.
        policy: folder of the weights to begin from: a save inside the epoch when resuming; with an adapter, those it
            sits on.
        adapter: what is trained on those; None where that is all weights.
        like: folder of the policy the epoch began from; its files beside the weights are kept.
        trainer: folder of trainer state to go on from; None for a fresh optimizer.
        scratch: a free path that all ranks share, to write saves at before they are stored.
        first_step: of the epoch that is still to do; above 0 when resuming inside it.
        state: counters before that step.
        inputs: what the epoch's manifest will say it was made from.
        settings: of the run, with this attempt's hardware.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    run_uri: str
    attempt: str
    iteration: int
    epoch: int
    policy: Path
    adapter: AdapterJob | None = None
    like: Path
    trainer: Path | None
    scratch: Path
    first_step: int
    state: TrainerState
    inputs: dict[str, Any]
    settings: Settings

    @property
    def where(self) -> str:
        return f"iteration {self.iteration}, epoch {self.epoch}"
