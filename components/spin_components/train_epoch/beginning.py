"""Where an epoch begins: with the policy it is given, after the epoch before it, or at a save inside itself."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any

from spin_components.algorithm.trainer_state import TrainerState
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.manifests import finished, read_manifest
from spin_components.store.models import open_model
from spin_components.store.run import RunStore
from spin_components.train_epoch.job import EpochJob

logger = logging.getLogger(__name__)


def begin_epoch(
    run: RunStore,
    settings: Settings,
    *,
    attempt: str,
    iteration: int,
    epoch: int,
    policy_uri: str,
    inputs: dict[str, Any],
) -> EpochJob:
    """Fetch what an epoch goes on from, and say so.

    Args:
        run: the run.
        settings: of the run, with this attempt's hardware.
        attempt: whoever holds the run's lease.
        iteration: t.
        epoch: within the iteration.
        policy_uri: the weights the epoch begins from.
        inputs: what the epoch's manifest will say it was made from.

    Raises:
        InputsChangedError: the epoch was begun from something else.
    """
    first_step, trainer = 0, None
    like = policy = open_model(run, policy_uri, what="the policy to train")
    if partial := finished(run, layout.partial(iteration, epoch), inputs):
        what, made_by = "a save inside the epoch", layout.partial(iteration, epoch)
        folder = run.fetch(partial.outputs, what=what, made_by=made_by) / partial.facts["key"]
        policy, trainer, first_step = folder / "policy", folder / "trainer", int(partial.facts["done"])
        state = TrainerState.model_validate(partial.facts["state"])
        logger.info("going on after step %d of this epoch", first_step)
    else:
        state = _state_before(run, settings, iteration, epoch)
        carried = layout.epoch_of(run.key_of(policy_uri)) if epoch or not settings.spin.reset_optimizer else None
        trainer = _trainer_of(run, *carried) if carried else None
        num_updates = _state_after(run, *carried).num_updates if carried else 0
        state = state.model_copy(update={"num_updates": num_updates})
    return EpochJob(
        run_uri=run.uri,
        attempt=attempt,
        iteration=iteration,
        epoch=epoch,
        policy=policy,
        like=like,
        trainer=trainer,
        scratch=run.scratch / f".epoch-{iteration}-{epoch}-{uuid.uuid4().hex[:8]}.part",
        first_step=first_step,
        state=state,
        inputs=inputs,
        settings=settings,
    )


def _trainer_of(run: RunStore, iteration: int, epoch: int) -> Path:
    """The trainer's folder as an epoch left it, with the policy that training goes on from."""
    key = f"{layout.epoch(iteration, epoch)}/trainer"
    made_by = layout.epoch_manifest(iteration, epoch)
    found = read_manifest(run, made_by).outputs_below(key)
    files = {f"{key}/{name}": file for name, file in found.items()}
    return run.fetch(files, what="the trainer's state", made_by=made_by) / key


def _state_before(run: RunStore, settings: Settings, iteration: int, epoch: int) -> TrainerState:
    """Counters at the start of an epoch: as the epoch before it left them."""
    if (iteration, epoch) == (0, 0):
        return TrainerState()
    before = (iteration, epoch - 1) if epoch else (iteration - 1, settings.spin.epochs(iteration - 1) - 1)
    return _state_after(run, *before)


def _state_after(run: RunStore, iteration: int, epoch: int) -> TrainerState:
    return TrainerState.model_validate(read_manifest(run, layout.epoch_manifest(iteration, epoch)).facts["state"])
