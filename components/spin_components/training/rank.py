"""One rank of an epoch; `python -m spin_components.training.rank JOB.json` under torchrun."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from spin_components.data.pair_counts import PairCounts
from spin_components.model.compute import Compute, resolve_compute, set_threads
from spin_components.model.scoring import load_scored
from spin_components.runtime.ranks import begin_rank, take_part
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.training.adapter import begin_adapter
from spin_components.training.backend import Backend
from spin_components.training.confirmations import open_store
from spin_components.training.course import Course
from spin_components.training.extensions import extensions_compiled
from spin_components.training.job import EpochJob
from spin_components.training.loop import EpochLoop
from spin_components.training.parts import load_whole
from spin_components.training.saver import Saver
from spin_components.training.saves import Trained, load_trainer, weight_parts


def train_rank(job: EpochJob, step: Step, compute: Compute, *, distributed: bool) -> bool:
    """Train this rank's part of the epoch and publish the result.

    Args:
        job: the epoch.
        step: the running step.
        compute: this rank's device.
        distributed: whether to use DeepSpeed, which needs an initialised process group.

    Returns: False when the attempt's time ran out first; what was done is saved.
    """
    course = Course(job.settings, job.iteration)
    data = course.load(step.run)
    model = _load(job, compute, distributed)
    if job.adapter:
        begin_adapter(model, job, job.adapter)
    model.train()
    if job.settings.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    backend = _backend(model, job, compute, distributed)
    load_trainer(job, backend)
    with Saver(step, job, backend, open_store() if backend.ranks > 1 else None) as saver:
        loop = EpochLoop(job, backend, data, step, saver)
        started = time.monotonic()
        if not loop.run():
            return False
        facts = _facts(loop.trained, data.counts, time.monotonic() - started) | _backend_facts(job, distributed)
        if not course.is_self_play:
            facts["val_loss"] = loop.held_out_loss()
        saver.save_epoch(loop.trained, facts)
    return True


def _load(job: EpochJob, compute: Compute, distributed: bool) -> Any:
    parts = weight_parts(job)
    if distributed:
        from spin_components.training.deepspeed_backend import load_for_ranks, load_weights

        model = load_for_ranks(job.policy, job.settings, compute)
        if parts:
            load_weights(model, parts)
        return model
    model = load_scored(job.policy, job.settings, compute)
    if parts:
        load_whole(model, parts)
    return model


def _backend(model: Any, job: EpochJob, compute: Compute, distributed: bool) -> Backend:
    if distributed:
        from spin_components.training.deepspeed_backend import DeepSpeedBackend

        return DeepSpeedBackend(model, job.settings.training, compute)
    from spin_components.training.torch_backend import TorchBackend

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
    begin_rank()
    job = EpochJob.model_validate(json.loads(job_path.read_text("utf-8")))
    hardware = job.settings.hardware
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    set_threads(hardware, processes=hardware.ranks)
    compute = resolve_compute(hardware, job.settings.training.precision, local_rank=local_rank)
    if compute.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"

    def work(report: Callable[[int], None]) -> dict[str, Any]:
        _meet(job, compute)
        with Step.join(
            job.step,
            job.run_uri,
            hardware,
            attempt=job.attempt,
            rank=rank,
            key=layout.epoch_manifest(job.iteration, job.epoch),
            inputs=job.inputs,
            **job.labels,
        ) as step:
            return {"finished": train_rank(job, step, compute, distributed=True)}

    take_part(job_path, job.where, work)
    from torch import distributed as dist

    dist.barrier()
    dist.destroy_process_group()


def _meet(job: EpochJob, compute: Compute) -> None:
    """Wait for the other ranks; on CPUs DeepSpeed compiles an operation where it is not there.

    The limit on a collective, `hardware.collective_timeout`, guards what ranks compute together: steps, validations,
    the loading of a model that the first rank reads, and gathers of weights that are written to this machine's disk.
    No rank waits in a collective for another one's storage: see `training.confirmations`.
    """
    import deepspeed

    limit: dict[str, Any] = {}
    if "DEEPSPEED_TIMEOUT" not in os.environ:  # minutes, which DeepSpeed reads
        limit["timeout"] = timedelta(seconds=job.settings.hardware.collective_timeout)
    backend = "gloo" if compute.device.type == "cpu" else "nccl"
    with extensions_compiled():
        deepspeed.init_distributed(dist_backend=backend, **limit)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
