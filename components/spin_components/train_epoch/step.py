"""Train the policy for one epoch, from where the last save left it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spin_components.device import Compute, resolve_compute, set_threads
from spin_components.errors import ConfigError
from spin_components.execution import Step, step
from spin_components.process import STOPPED
from spin_components.ref_logprob.played import generation_digests
from spin_components.scoring import resolve_packing
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import digest_json, digest_of
from spin_components.store.local import remove
from spin_components.store.manifests import finished, read_manifest
from spin_components.store.models import model_digest
from spin_components.store.run import RunStore
from spin_components.train_epoch.beginning import begin_epoch
from spin_components.train_epoch.job import EpochJob
from spin_components.train_epoch.pairs import shard_manifests
from spin_components.train_epoch.ranks import run_ranks
from spin_components.train_epoch.saving import clear_partial

_NOT_INPUTS = ("training.save_interval", "training.backend", "training.zero_stage", "training.offload_optimizer")


def train(
    run_uri: str, iteration: int, epoch: int, policy_uri: str, scores_uris: list[str], hardware: dict[str, Any]
) -> str:
    """Train one epoch of an iteration on this machine.

    Args:
        run_uri: the run.
        iteration: t.
        epoch: within the iteration.
        policy_uri: the weights to begin from: the reference at epoch 0, then the epoch before's.
        scores_uris: what `ref-logprob` returned for each shard.
        hardware: the attempt's `[hardware]`.

    Returns: the trained policy's URI, or empty when the attempt's time is up.
    """

    def work(current: Step, inputs: dict[str, Any]) -> bool:
        job = begin_epoch(
            current.run,
            current.settings,
            attempt=current.lease.owner if current.lease else "",
            iteration=iteration,
            epoch=epoch,
            policy_uri=policy_uri,
            inputs=inputs,
        )
        if job.first_step:
            current.events.write("resume", done=job.first_step)
        try:
            return _train(current, job)
        finally:
            remove(job.scratch)

    return train_with(work, run_uri, iteration, epoch, policy_uri, scores_uris, hardware, how=how_here)


def train_with(
    work: Callable[[Step, dict[str, Any]], bool],
    run_uri: str,
    iteration: int,
    epoch: int,
    policy_uri: str,
    scores_uris: list[str],
    hardware: dict[str, Any],
    *,
    how: Callable[[Settings], dict[str, Any]] | None,
) -> str:
    """Train one epoch by some means, unless it is done already; see `train`.

    Args:
        work: does it, given the step and the epoch's inputs; False when the attempt's time ran out first.
        how: precision and packing of whoever computes; None takes what `ref-logprob` recorded.
    """
    if STOPPED in (policy_uri, *scores_uris):
        return STOPPED
    with step("train-epoch", run_uri, hardware, iteration=iteration, epoch=epoch) as current:
        run, settings = current.run, current.settings
        inputs = _inputs(run, settings, how(settings) if how else None, iteration, epoch, policy_uri)
        key = layout.epoch_manifest(iteration, epoch)
        if manifest := finished(run, key, inputs):
            current.reuse(manifest)
            clear_partial(run, iteration, epoch)  # a step that was killed may have left it
            return str(manifest.facts["policy_uri"])
        if current.out_of_time() or not work(current, inputs):
            return current.stop("max_time")
        return str(read_manifest(run, key).facts["policy_uri"])


def how_here(settings: Settings) -> dict[str, Any]:
    """Precision and packing that this machine computes in."""
    compute = _compute(settings)
    return {"precision": compute.precision, "packing": resolve_packing(settings.training, compute)}


def check_alike(here: dict[str, Any], there: dict[str, Any]) -> None:
    """Refuse to train otherwise than the reference was scored.

    Raises:
        ConfigError: naming the setting.
    """
    for name, value in here.items():
        if there[name] != value:
            raise ConfigError(
                f"ref-logprob computed in {there[name]}, train-epoch would in {value}; policy and reference must be "
                f"computed alike. Set training.{name}, or use like machines"
            )


def _compute(settings: Settings) -> Compute:
    return resolve_compute(settings.hardware, settings.training.precision)


def _inputs(
    run: RunStore, settings: Settings, here: dict[str, Any] | None, iteration: int, epoch: int, policy_uri: str
) -> dict[str, Any]:
    shards = shard_manifests(run, iteration)
    computed = {name: shards[0][1].inputs[name] for name in ("precision", "packing")}
    for _, scored in shards:
        check_alike(here or computed, scored.inputs)
    pairs = [[digest_of(scored.outputs), *generation_digests(scored).values()] for _, scored in shards]
    training = {f"training.{name}": value for name, value in settings.training.model_dump(mode="json").items()}
    objective = {f"objective.{name}": value for name, value in settings.objective.model_dump(mode="json").items()}
    return {
        **{name: value for name, value in training.items() if name not in _NOT_INPUTS},
        "training.lr": settings.training.peak_lr(iteration),
        **objective,
        **settings.lora.training_inputs(),
        "spin.ref_policy_kl_penalty": settings.spin.beta(iteration),
        "spin.max_epochs": settings.spin.epochs(iteration),
        "spin.max_steps": settings.spin.max_steps,
        "spin.reset_optimizer": settings.spin.reset_optimizer,
        "run.seed": settings.run.seed,
        **computed,
        "pairs": digest_json(pairs),
        "policy": model_digest(run, policy_uri),
        "epoch": epoch,
    }


def _train(current: Step, job: EpochJob) -> bool:
    backend = job.settings.training.backend
    if backend == "deepspeed" or (backend == "auto" and job.settings.hardware.ranks > 1):
        return run_ranks(job)
    from spin_components.train_epoch.worker import train_rank

    set_threads(job.settings.hardware)
    return train_rank(job, current, _compute(job.settings), distributed=False)
