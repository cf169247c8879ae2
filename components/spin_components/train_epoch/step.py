"""Train the policy for one epoch, from where the last save left it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from spin_components import errors
from spin_components.algorithm.trainer_state import TrainerState
from spin_components.device import Compute, resolve_compute, set_threads
from spin_components.errors import ConfigError, EngineError
from spin_components.execution import STOPPED, Step, step
from spin_components.scoring import resolve_packing
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import digest_json
from spin_components.store.local import remove
from spin_components.store.manifests import finished, read_manifest
from spin_components.store.models import model_digest, open_model
from spin_components.store.run import RunStore
from spin_components.train_epoch.job import EpochJob
from spin_components.train_epoch.pairs import shard_manifests
from spin_components.train_epoch.saving import clear_partial

logger = logging.getLogger(__name__)

_NOT_INPUTS = ("training.save_interval", "training.backend", "training.zero_stage")


def train(
    run_uri: str, iteration: int, epoch: int, policy_uri: str, scores_uris: list[str], hardware: dict[str, Any]
) -> str:
    """Train one epoch of an iteration.

    Args:
        run_uri: the run.
        iteration: t.
        epoch: within the iteration.
        policy_uri: the weights to begin from: the reference at epoch 0, then the epoch before's.
        scores_uris: what `ref-logprob` returned for each shard.
        hardware: the attempt's `[hardware]`.

    Returns: the trained policy's URI, or empty when the attempt's time is up.
    """
    if STOPPED in (policy_uri, *scores_uris):
        return STOPPED
    with step("train-epoch", run_uri, hardware, iteration=iteration, epoch=epoch) as current:
        run, settings = current.run, current.settings
        compute = resolve_compute(settings.hardware, settings.training.precision)
        inputs = _inputs(run, settings, compute, iteration, epoch, policy_uri)
        key = layout.epoch_manifest(iteration, epoch)
        if manifest := finished(run, key, inputs):
            current.reuse(manifest)
            clear_partial(run, iteration, epoch)  # a step that was killed may have left it
            return str(manifest.facts["policy_uri"])
        if current.out_of_time():
            return current.stop("max_time")
        job = _job(current, settings, iteration, epoch, policy_uri, inputs)
        try:
            if not _train(current, job, compute):
                return current.stop("max_time")
        finally:
            remove(job.scratch)
        return str(read_manifest(run, key).facts["policy_uri"])


def _inputs(
    run: RunStore, settings: Settings, compute: Compute, iteration: int, epoch: int, policy_uri: str
) -> dict[str, Any]:
    shards = shard_manifests(run, iteration)
    here = {"precision": compute.precision, "packing": resolve_packing(settings.training, compute)}
    for name, value in here.items():
        if (found := {str(scored.inputs[name]) for _, scored in shards}) != {value}:
            raise ConfigError(
                f"ref-logprob computed in {', '.join(sorted(found))}, train-epoch would in {value}; policy and "
                f"reference must be computed alike. Set training.{name}, or use like machines"
            )
    pairs = [{key: file.sha256 for m in manifests for key, file in m.outputs.items()} for manifests in shards]
    training = {f"training.{name}": value for name, value in settings.training.model_dump(mode="json").items()}
    return {
        **{name: value for name, value in training.items() if name not in _NOT_INPUTS},
        "spin.ref_policy_kl_penalty": settings.spin.beta(iteration),
        "spin.max_epochs": settings.spin.max_epochs,
        "spin.max_steps": settings.spin.max_steps,
        "run.seed": settings.run.seed,
        **here,
        "pairs": digest_json(pairs),
        "policy": model_digest(run, policy_uri),
        "epoch": epoch,
    }


def _job(
    current: Step, settings: Settings, iteration: int, epoch: int, policy_uri: str, inputs: dict[str, Any]
) -> EpochJob:
    run, first_step, trainer = current.run, 0, None
    like = policy = open_model(run, policy_uri, what="the policy to train")
    if partial := finished(run, layout.partial(iteration, epoch), inputs):
        what, made_by = "a save inside the epoch", layout.partial(iteration, epoch)
        folder = run.fetch(partial.outputs, what=what, made_by=made_by) / partial.facts["key"]
        policy, trainer, first_step = folder / "policy", folder / "trainer", int(partial.facts["done"])
        state = TrainerState.model_validate(partial.facts["state"])
        logger.info("going on after step %d of this epoch", first_step)
        current.events.write("resume", done=first_step)
    else:
        state = _state_before(run, settings, iteration, epoch)
        if epoch > 0:
            trainer = _trainer_before(run, iteration, epoch)
    return EpochJob(
        run_uri=run.uri,
        attempt=current.lease.owner if current.lease else "",
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


def _trainer_before(run: RunStore, iteration: int, epoch: int) -> Path:
    """The trainer's folder as the epoch before left it."""
    key = f"{layout.epoch(iteration, epoch - 1)}/trainer"
    made_by = layout.epoch_manifest(iteration, epoch - 1)
    found = read_manifest(run, made_by).outputs_below(key)
    files = {f"{key}/{name}": file for name, file in found.items()}
    return run.fetch(files, what="the trainer's state", made_by=made_by) / key


def _state_before(run: RunStore, settings: Settings, iteration: int, epoch: int) -> TrainerState:
    """Counters at the start of an epoch: as the epoch before it left them."""
    if (iteration, epoch) == (0, 0):
        return TrainerState(max_epochs=settings.spin.max_epochs)
    before = (iteration, epoch - 1) if epoch else (iteration - 1, settings.spin.max_epochs - 1)
    return TrainerState.model_validate(read_manifest(run, layout.epoch_manifest(*before)).facts["state"])


def _train(current: Step, job: EpochJob, compute: Compute) -> bool:
    backend = job.settings.training.backend
    if backend == "deepspeed" or (backend == "auto" and job.settings.hardware.ranks > 1):
        return _train_distributed(job)
    from spin_components.train_epoch.worker import train_rank

    set_threads(job.settings.hardware)
    return train_rank(job, current, compute, distributed=False)


def _train_distributed(job: EpochJob) -> bool:
    """Start the ranks with torchrun and wait for them.

    Raises:
        SpinError: what a rank raised, or EngineError when one died without a word.
    """
    with tempfile.TemporaryDirectory(prefix="spin-epoch-") as folder:
        path = Path(folder, "job.json")
        path.write_text(job.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(job.settings.hardware.ranks)]
        command += ["-m", "spin_components.train_epoch.worker", str(path)]
        code = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, check=False).returncode
        outcomes = [json.loads(outcome.read_text("utf-8")) for outcome in sorted(Path(folder).glob("outcome-*.json"))]
    for outcome in outcomes:
        if "error" in outcome:
            raise getattr(errors, outcome["error"])(outcome["message"])
    if code or len(outcomes) != job.settings.hardware.ranks:
        raise EngineError(
            f"{job.where}: torchrun ended with code {code}; a rank died without a word (out of memory?). "
            "Its output is above; the last save is kept, and the same command goes on from there"
        )
    return bool(outcomes[0]["finished"])
