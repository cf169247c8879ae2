"""Trains one epoch in a step: in this process, in one process a rank, or in several pods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spin_components.model.compute import resolve_compute, set_threads
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.store.base import remove
from spin_components.store.manifests import read_manifest
from spin_components.training.inputs import epoch_inputs, numerics_here
from spin_components.training.job import EpochJob
from spin_components.training.nodes.following import Pods, train_in_pods
from spin_components.training.resume import begin_epoch
from spin_components.training.saves import delete_saves
from spin_components.training.torchrun import run_ranks


def train_one_epoch(step: Step, iteration: int, epoch: int, policy_uri: str, pods: Pods | None = None) -> str:
    """Train an epoch from where the last save left it, unless it is finished.

    Args:
        step: the running step; it is stopped where the attempt's time is up.
        iteration: t, `layout.WARM_UP`, or that of a control.
        epoch: within the iteration.
        policy_uri: the weights to begin with.
        pods: where several pods train; None trains on this machine.

    Returns: the trained policy's URI.
    """

    def inputs() -> dict[str, object]:
        return epoch_inputs(step, iteration, epoch, policy_uri, None if pods else numerics_here(step.settings))

    if step.is_due(layout.epoch_manifest(iteration, epoch), inputs):
        if pods:
            train_in_pods(step, iteration, epoch, policy_uri, pods)
        else:
            _train_here(step, iteration, epoch, policy_uri)
    if not step.is_stopped:
        delete_saves(step.run, iteration, epoch)
    return step.run.uri_of(f"{layout.epoch(iteration, epoch)}/policy")


def train_part(step: Step, number: int, epoch: int, policy_uri: str, pods: Pods | None) -> dict[str, Any] | None:
    """Train an epoch of several within one step.

    Args:
        step, epoch, policy_uri, pods: as for `train_one_epoch`.
        number: `layout.WARM_UP`, or that of a control.

    Returns: the facts of its manifest; None where the attempt's time is up.
    """
    with step.part(epoch=epoch):
        train_one_epoch(step, number, epoch, policy_uri, pods)
    if step.is_stopped:
        return None
    return read_manifest(step.run, layout.epoch_manifest(number, epoch)).facts


def lowest_epoch(epochs: Sequence[Mapping[str, Any]]) -> int:
    """The epoch of the lowest val_loss, the earlier of equals."""
    return min(range(len(epochs)), key=lambda epoch: (float(epochs[epoch]["val_loss"]), epoch))


def delete_epochs(step: Step, number: int, epochs: int, *, keep: int | None = None, trainer: bool = False) -> None:
    """Delete the weights and the optimizer state of epochs of the warm-up or of a control; repeating it does no harm.

    Args:
        step: the running step.
        number: as for `train_part`.
        epochs: how many there are.
        keep: the epoch whose weights stay, and with `trainer` its optimizer state.
        trainer: see above.
    """
    for epoch in range(epochs):
        folder = layout.epoch(number, epoch)
        if epoch != keep or not trainer:
            step.run.delete(f"{folder}/trainer")
        if epoch != keep:
            step.run.delete(f"{folder}/policy")
            step.run.delete(f"{folder}/{layout.ADAPTER}")


def delete_control(step: Step, iteration: int) -> None:
    """Delete the weights of a control that the next one has begun from, once it is validated and, where the evaluation
    decides, evaluated. With `lora.export = "adapter"` they stay: the next control's adapter is for the model that they
    make.

    Args:
        step: the running step.
        iteration: t of the control.
    """
    settings, number = step.settings, layout.control(iteration)
    if (settings.lora.is_on and settings.lora.export == "adapter") or not step.run.exists(
        layout.control_manifest(iteration + 1)
    ):
        return
    epoch = int(read_manifest(step.run, layout.control_manifest(iteration)).facts["epoch"])
    awaited = [layout.validation(number, epoch)]
    if step.selection.waits_for_evaluation and step.evaluation.tasks:
        awaited.append(layout.evaluation(number))
    if all(step.run.exists(key) for key in awaited):
        delete_epochs(step, number, settings.spin.epochs(iteration))


def _train_here(step: Step, iteration: int, epoch: int, policy_uri: str) -> None:
    job = begin_epoch(
        step.run,
        step.settings,
        attempt=step.attempt,
        step=step.name,
        iteration=iteration,
        epoch=epoch,
        policy_uri=policy_uri,
        inputs=step.inputs,
    )
    if job.first_step:
        step.events.write("resume", done=job.first_step)
    try:
        is_finished = _train(step, job)
    finally:
        remove(job.scratch)
    if not is_finished:
        step.stop()


def _train(step: Step, job: EpochJob) -> bool:
    """Train in this process, or with DeepSpeed in one process a rank; False when the time ran out first."""
    settings = job.settings
    backend = settings.training.backend
    if backend == "deepspeed" or (backend == "auto" and settings.hardware.ranks > 1):
        return run_ranks(job)
    from spin_components.training.rank import train_rank

    set_threads(settings.hardware)
    compute = resolve_compute(settings.hardware, settings.training.precision)
    with step.interruption_postponed():  # a signal ends the epoch after a save
        return train_rank(job, step, compute, distributed=False)
