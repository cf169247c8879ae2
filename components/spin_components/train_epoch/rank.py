"""One rank of an epoch; `python -m spin_components.train_epoch.rank JOB.json` under torchrun."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from spin_components.data.pair_counts import PairCounts
from spin_components.errors import SpinError
from spin_components.model.compute import Compute, resolve_compute, set_threads
from spin_components.model.scoring import load_scored
from spin_components.record.training_pairs import load_training_pairs
from spin_components.runtime.process import configure_logging, die_with_parent
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.train_epoch.adapter import begin_adapter
from spin_components.train_epoch.backend import Backend
from spin_components.train_epoch.job import EpochJob
from spin_components.train_epoch.loop import EpochLoop
from spin_components.train_epoch.saves import Trained, load_trainer, save_epoch

logger = logging.getLogger(__name__)


def train_rank(job: EpochJob, step: Step, compute: Compute, *, distributed: bool) -> bool:
    """Train this rank's part of the epoch and publish the result.

    Args:
        job: the epoch.
        step: the running step.
        compute: this rank's device.
        distributed: whether to use DeepSpeed, which needs an initialised process group.

    Returns: False when the attempt's time ran out first; what was done is saved.
    """
    data = load_training_pairs(step.run, job.iteration)
    model = _load(job, compute, distributed)
    if job.adapter:
        begin_adapter(model, job, job.adapter)
    model.train()
    if job.settings.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    backend = _backend(model, job, compute, distributed)
    load_trainer(job, backend)
    loop = EpochLoop(job, backend, data, step)
    started = time.monotonic()
    if not loop.run():
        return False
    facts = _facts(loop.trained, data.counts, time.monotonic() - started) | _backend_facts(job, distributed)
    save_epoch(step, job, backend, loop.trained, facts)
    return True


def _load(job: EpochJob, compute: Compute, distributed: bool) -> Any:
    if distributed:
        from spin_components.train_epoch.deepspeed_backend import load_for_ranks

        return load_for_ranks(job.policy, job.settings, compute)
    return load_scored(job.policy, job.settings, compute)


def _backend(model: Any, job: EpochJob, compute: Compute, distributed: bool) -> Backend:
    if distributed:
        from spin_components.train_epoch.deepspeed_backend import DeepSpeedBackend

        return DeepSpeedBackend(model, job.settings.training, compute)
    from spin_components.train_epoch.torch_backend import TorchBackend

    return TorchBackend(model, job.settings.training, compute)


def _facts(trained: Trained, counts: PairCounts, train_s: float) -> dict[str, Any]:
    last = trained.rows[-1] if trained.rows else {}
    return {
        **counts.model_dump(mode="json"),
        "num_steps": len(trained.rows),
        "train_s": round(train_s, 3),
        "metrics": {name: value for name, value in last.items() if name not in ("step", "iteration", "epoch")},
    }


def _backend_facts(job: EpochJob, distributed: bool) -> dict[str, Any]:
    """What trained; no input of the epoch, since another backend or stage can resume it."""
    if not distributed:
        return {"backend": "torch"}
    return {"backend": "deepspeed", "zero_stage": job.settings.training.zero_stage}


def main(job_path: Path) -> None:
    """Entry point of a rank that torchrun started; its outcome is written beside the job."""
    configure_logging()
    die_with_parent()
    job = EpochJob.model_validate(json.loads(job_path.read_text("utf-8")))
    hardware = job.settings.hardware
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if rank:
        logging.getLogger().setLevel(logging.WARNING)
    set_threads(hardware, processes=hardware.ranks)
    compute = resolve_compute(hardware, job.settings.training.precision, local_rank=local_rank)
    if compute.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    outcome: dict[str, Any]
    try:
        _meet(compute)
        with Step.join(
            "train-epoch",
            job.run_uri,
            hardware,
            attempt=job.attempt,
            rank=rank,
            key=layout.epoch_manifest(job.iteration, job.epoch),
            inputs=job.inputs,
            iteration=job.iteration,
            epoch=job.epoch,
        ) as step:
            outcome = {"finished": train_rank(job, step, compute, distributed=True)}
    except Exception as error:
        logger.exception("rank %d failed", rank)
        known = isinstance(error, SpinError)
        outcome = {
            "error": type(error).__name__ if known else "EngineError",
            "message": str(error) if known else f"{job.where}, rank {rank}: {type(error).__name__}: {error}",
        }
    job_path.with_name(f"outcome-{rank}.json").write_text(json.dumps(outcome), encoding="utf-8")
    if "error" in outcome:
        os._exit(1)  # other ranks may wait within a collective: torchrun ends them
    from torch import distributed as dist

    dist.barrier()
    dist.destroy_process_group()


def _meet(compute: Compute) -> None:
    """Wait for the other ranks; on CPUs DeepSpeed compiles an operation where it is not there."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo" if compute.device.type == "cpu" else "nccl")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
