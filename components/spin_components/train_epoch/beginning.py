"""Where an epoch begins: with the policy it is given, after the epoch before it, or at a save inside itself."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any

from spin_components.algorithm.trainer_state import TrainerState
from spin_components.errors import IntegrityError
from spin_components.lora.files import Base, read_base
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.manifests import finished, read_manifest
from spin_components.store.models import model_digest, open_model, open_scored
from spin_components.store.run import RunStore
from spin_components.train_epoch.job import AdapterJob, EpochJob

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
    first_step, trainer, save = 0, None, None
    if partial := finished(run, layout.partial(iteration, epoch), inputs):
        what, made_by = "a save inside the epoch", layout.partial(iteration, epoch)
        folder = run.fetch(partial.outputs, what=what, made_by=made_by) / partial.facts["key"]
        save, trainer, first_step = folder, folder / "trainer", int(partial.facts["done"])
        state = TrainerState.model_validate(partial.facts["state"])
        logger.info("going on after step %d of this epoch", first_step)
    else:
        state = _state_before(run, settings, iteration, epoch)
        carried = layout.epoch_of(run.key_of(policy_uri)) if epoch or not settings.spin.reset_optimizer else None
        trainer = _part_of(run, *carried, "trainer", what="the trainer's state") if carried else None
        num_updates = _state_after(run, *carried).num_updates if carried else 0
        state = state.model_copy(update={"num_updates": num_updates})
    policy, like, adapter = _weights(run, settings, iteration, epoch, policy_uri, save)
    return EpochJob(
        run_uri=run.uri,
        attempt=attempt,
        iteration=iteration,
        epoch=epoch,
        policy=policy,
        adapter=adapter,
        like=like,
        trainer=trainer,
        scratch=run.scratch / f".epoch-{iteration}-{epoch}-{uuid.uuid4().hex[:8]}.part",
        first_step=first_step,
        state=state,
        inputs=inputs,
        settings=settings,
    )


def _weights(
    run: RunStore, settings: Settings, iteration: int, epoch: int, policy_uri: str, save: Path | None
) -> tuple[Path, Path, AdapterJob | None]:
    """What an epoch begins from: folders of the weights and of the files beside them, and the adapter upon them.

    An adapter goes on through the epochs of an iteration, upon the iteration's reference as it is: what is merged is
    never taken apart or merged again.
    """
    if not settings.lora.is_on:
        like = open_model(run, policy_uri, what="the policy to train")
        return save / "policy" if save else like, like, None
    adapter = save / layout.ADAPTER if save else _adapter_before(run, iteration, epoch) if epoch else None
    base = read_base(adapter) if adapter else Base(uri=policy_uri, sha256=model_digest(run, policy_uri))
    if (found := model_digest(run, base.uri)) != base.sha256:
        raise IntegrityError(f"the adapter sits on {base.uri}, {base.sha256:.12}…; what is there now is {found:.12}…")
    folder = open_scored(run, base.uri, what="the weights that the adapter sits on")
    return folder, folder, AdapterJob(base=base, folder=adapter)


def _adapter_before(run: RunStore, iteration: int, epoch: int) -> Path:
    """The adapter's folder as the epoch before left it: beside the merged policy, or the policy itself."""
    files = read_manifest(run, layout.epoch_manifest(iteration, epoch - 1))
    key = layout.epoch(iteration, epoch - 1)
    part = layout.ADAPTER if files.outputs_below(f"{key}/{layout.ADAPTER}") else "policy"
    return _part_of(run, iteration, epoch - 1, part, what="the adapter")


def _part_of(run: RunStore, iteration: int, epoch: int, part: str, *, what: str) -> Path:
    """The folder of a part of what an epoch left."""
    key = f"{layout.epoch(iteration, epoch)}/{part}"
    made_by = layout.epoch_manifest(iteration, epoch)
    found = read_manifest(run, made_by).outputs_below(key)
    files = {f"{key}/{name}": file for name, file in found.items()}
    return run.fetch(files, what=what, made_by=made_by) / key


def _state_before(run: RunStore, settings: Settings, iteration: int, epoch: int) -> TrainerState:
    """Counters at the start of an epoch: as the epoch before it left them."""
    if (iteration, epoch) == (0, 0):
        return TrainerState()
    before = (iteration, epoch - 1) if epoch else (iteration - 1, settings.spin.epochs(iteration - 1) - 1)
    return _state_after(run, *before)


def _state_after(run: RunStore, iteration: int, epoch: int) -> TrainerState:
    return TrainerState.model_validate(read_manifest(run, layout.epoch_manifest(iteration, epoch)).facts["state"])
