"""Train the policy for one epoch on this machine, from where the last save left it."""

from __future__ import annotations

from typing import Any

from spin_components.model.compute import resolve_compute, set_threads
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.store.base import remove
from spin_components.train_epoch.inputs import epoch_inputs, numerics_here
from spin_components.train_epoch.job import EpochJob
from spin_components.train_epoch.resume import begin_epoch
from spin_components.train_epoch.saves import delete_saves
from spin_components.train_epoch.torchrun import run_ranks


def train(
    run_uri: str,
    iteration: int,
    epoch: int,
    policy_uri: str,
    scores_uris: list[str],
    hardware: dict[str, Any] | None = None,
) -> str:
    """Train one epoch of an iteration.

    Args:
        run_uri: the run.
        iteration: t.
        epoch: within the iteration.
        policy_uri: the weights to begin with: the reference at epoch 0, then the epoch before's.
        scores_uris: what `ref-logprob` returned for each shard.
        hardware: `[hardware]`; None for what `prepare` recorded for the attempt.

    Returns: the trained policy's URI, or empty when the attempt's time is up.
    """
    key, after = layout.epoch_manifest(iteration, epoch), [policy_uri, *scores_uris]
    with Step.begin("train-epoch", run_uri, hardware, after=after, iteration=iteration, epoch=epoch) as step:
        if step.is_due(key, lambda: epoch_inputs(step, iteration, epoch, policy_uri, numerics_here(step.settings))):
            job = begin_epoch(
                step.run,
                step.settings,
                attempt=step.attempt,
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
        if not step.is_stopped:
            delete_saves(step.run, iteration, epoch)
        return step.returns(step.run.uri_of(f"{layout.epoch(iteration, epoch)}/policy"))


def _train(step: Step, job: EpochJob) -> bool:
    """Train in this process, or with DeepSpeed in one process a rank; False when the time ran out first."""
    settings = job.settings
    backend = settings.training.backend
    if backend == "deepspeed" or (backend == "auto" and settings.hardware.ranks > 1):
        return run_ranks(job)
    from spin_components.train_epoch.rank import train_rank

    set_threads(settings.hardware)
    compute = resolve_compute(settings.hardware, settings.training.precision)
    with step.interruption_postponed():  # a signal ends the epoch after a save
        return train_rank(job, step, compute, distributed=False)
