"""Finds where an epoch starts: at its first step, or at a save inside it."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any

from spin_components.algorithm.trainer_state import TrainerState
from spin_components.errors import IntegrityError
from spin_components.model.lora.files import Base, read_base
from spin_components.model.stored import model_digest, open_model, open_scored
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import finished, read_manifest
from spin_components.training.course import Course
from spin_components.training.job import AdapterJob, EpochJob
from spin_components.training.saves import SavedTrainer

logger = logging.getLogger(__name__)


def begin_epoch(
    run: RunStore,
    settings: Settings,
    *,
    attempt: str,
    step: str = "train-epoch",
    iteration: int,
    epoch: int,
    policy_uri: str,
    inputs: dict[str, Any],
) -> EpochJob:
    """Fetch the weights, the adapter and the trainer state that an epoch starts with.

    Args:
        run: the run.
        settings: of the run, with this attempt's hardware.
        attempt: owner of the run's lease.
        step: name of the step that trains it.
        iteration: t.
        epoch: within the iteration.
        policy_uri: the weights the epoch begins with.
        inputs: of the epoch's manifest.

    Raises:
        InputsChangedError: the save inside the epoch was made from other inputs.
    """
    first_step, trainer, save = 0, None, None
    is_whole = True
    if partial := finished(run, layout.partial(iteration, epoch), inputs):
        what, made_by = "a save inside the epoch", layout.partial(iteration, epoch)
        save = run.fetch(partial.outputs, what=what, made_by=made_by) / partial.facts["key"]
        names = partial.outputs_below(partial.facts["key"])
        is_whole = any(name.startswith("policy/") for name in names)
        trainer, first_step = SavedTrainer.find(save, names), int(partial.facts["done"])
        state = TrainerState.model_validate(partial.facts["state"])
        logger.info("resuming after step %d of this epoch", first_step)
    else:
        state = _state_before(run, settings, iteration, epoch)
        carried = layout.epoch_of(run.key_of(policy_uri)) if epoch or not settings.spin.reset_optimizer else None
        if carried and not epoch and carried[0] == layout.WARM_UP:
            carried = None  # self-play, and a control, begin with a fresh optimizer
        trainer = _trainer_after(run, *carried) if carried else None
        num_updates = _state_after(run, *carried).num_updates if carried else 0
        state = state.model_copy(update={"num_updates": num_updates})
    policy, like, adapter = _weights(run, settings, iteration, epoch, policy_uri, save, is_whole=is_whole)
    return EpochJob(
        run_uri=run.uri,
        attempt=attempt,
        step=step,
        iteration=iteration,
        epoch=epoch,
        policy=policy,
        adapter=adapter,
        like=like,
        trainer=trainer.folder if trainer else None,
        parts=trainer.parts if trainer else (),
        scratch=run.scratch / f".epoch-{iteration}-{epoch}-{uuid.uuid4().hex[:8]}.part",
        first_step=first_step,
        state=state,
        inputs=inputs,
        settings=settings,
    )


def _weights(
    run: RunStore,
    settings: Settings,
    iteration: int,
    epoch: int,
    policy_uri: str,
    save: Path | None,
    *,
    is_whole: bool,
) -> tuple[Path, Path, AdapterJob | None]:
    """Folders of the weights and of the files beside them, and the adapter.

    An adapter is trained through all epochs of an iteration, on top of the iteration's reference. Of a save whose
    weights are in parts, the policy that the epoch began with is the model to load them into.
    """
    if not settings.lora.is_on:
        like = open_model(run, policy_uri, what="the policy to train")
        return save / "policy" if save and is_whole else like, like, None
    adapter = save / layout.ADAPTER if save else _adapter_before(run, iteration, epoch) if epoch else None
    base = read_base(adapter) if adapter else Base(uri=policy_uri, sha256=model_digest(run, policy_uri))
    base = base.model_copy(update={"uri": run.resolve(base.uri)})
    if (actual := model_digest(run, base.uri)) != base.sha256:
        raise IntegrityError(
            f"the adapter was trained on {base.uri} with the digest {base.sha256:.12}…, which is {actual:.12}… now"
        )
    folder = open_scored(run, base.uri, what="the weights below the adapter")
    return folder, folder, AdapterJob(base=base, folder=adapter)


def _adapter_before(run: RunStore, iteration: int, epoch: int) -> Path:
    """Folder of the adapter that the epoch before saved: beside the merged policy, or the policy itself."""
    files = read_manifest(run, layout.epoch_manifest(iteration, epoch - 1))
    key = layout.epoch(iteration, epoch - 1)
    part = layout.ADAPTER if files.outputs_below(f"{key}/{layout.ADAPTER}") else "policy"
    return _part_of(run, iteration, epoch - 1, part, what="the adapter")


def _trainer_after(run: RunStore, iteration: int, epoch: int) -> SavedTrainer:
    """The trainer's state at the end of an epoch."""
    folder = _part_of(run, iteration, epoch, "trainer", what="the trainer's state").parent
    manifest = read_manifest(run, layout.epoch_manifest(iteration, epoch))
    return SavedTrainer.find(folder, manifest.outputs_below(layout.epoch(iteration, epoch)))


def _part_of(run: RunStore, iteration: int, epoch: int, part: str, *, what: str) -> Path:
    """Folder of one part of an epoch's outputs."""
    key = f"{layout.epoch(iteration, epoch)}/{part}"
    made_by = layout.epoch_manifest(iteration, epoch)
    outputs = read_manifest(run, made_by).outputs_below(key)
    files = {f"{key}/{name}": file for name, file in outputs.items()}
    return run.fetch(files, what=what, made_by=made_by) / key


def _state_before(run: RunStore, settings: Settings, iteration: int, epoch: int) -> TrainerState:
    """Counters at the start of an epoch: those at the end of the epoch before it."""
    if epoch:
        return _state_after(run, iteration, epoch - 1)
    number = Course(settings, iteration).iteration  # a control's counters follow those of the control before it
    if not number:
        return TrainerState()
    before = number - 1 if iteration >= 0 else layout.control(number - 1)
    return _state_after(run, before, settings.spin.epochs(number - 1) - 1)


def _state_after(run: RunStore, iteration: int, epoch: int) -> TrainerState:
    return TrainerState.model_validate(read_manifest(run, layout.epoch_manifest(iteration, epoch)).facts["state"])
