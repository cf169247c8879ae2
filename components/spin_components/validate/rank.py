"""One of several processes that validate a policy; `python -m spin_components.validate.rank JOB.json`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

from spin_components.runtime.ranks import begin_rank, one_at_a_time, take_cores, take_part
from spin_components.validate.job import ValidationJob


def main(job_path: Path) -> None:
    """Measure this rank's part."""
    rank, ranks = begin_rank()
    job = ValidationJob.model_validate_json(job_path.read_bytes())

    def work(report: Callable[[int], None]) -> dict[str, Any]:
        from spin_components.data.shards import Prompt, read_rows
        from spin_components.engine.engine import Sampling
        from spin_components.model.compute import resolve_compute, set_threads
        from spin_components.model.frozen import FrozenLoader, ShardedLoader, WholeLoader
        from spin_components.validate.policy import Turn, human_losses, sample_answers, score_samples

        turn: Turn = partial(one_at_a_time, job_path)
        settings, part = job.settings, job.parts[rank]
        compute = resolve_compute(
            settings.hardware, settings.training.precision, local_rank=int(os.environ["LOCAL_RANK"])
        )
        if compute.device.type == "cpu":
            take_cores(rank, ranks)
        set_threads(settings.hardware)
        prompts = read_rows(job.prompts, Prompt)
        batches = [[prompts[i] for i in batch] for batch in part.batches]
        loader: FrozenLoader = WholeLoader(compute)
        if job.is_sharded:
            loader, turn = ShardedLoader(compute), nullcontext
        place = (loader, turn)
        takes_part = bool(batches) or job.is_sharded  # in the gathers of other ranks' passes
        losses = human_losses(job.folder, batches, settings, compute, report, *place) if takes_part else []
        outcome: dict[str, Any] = {"losses": [[astuple(loss) for loss in batch] for batch in losses]}
        is_finite = all(abs(loss.nll) < float("inf") for batch in losses for loss in batch)
        is_any_sampled = any(each.sampled for each in job.parts) if job.is_sharded else bool(part.sampled)
        is_finite = loader.agree(is_finite)
        if not is_any_sampled or not is_finite:  # the mean of all ranks is not finite either
            loader.close()
            return outcome
        chosen = [prompts[i] for i in part.sampled]
        sampling = Sampling(settings.generation.at(0), job.eos_ids, job.seed)
        sampled, greedy = sample_answers(
            job.plain, chosen, sampling, settings, compute, lambda done: None, *place, numbers=part.numbers
        )
        samples = score_samples(job.folder, chosen, sampled, settings, compute, job.reference, *place)
        loader.close()
        return outcome | {
            "sampled": [astuple(answer) for answer in sampled],
            "greedy": [astuple(answer) for answer in greedy],
            "samples": [astuple(sample) for sample in samples],
        }

    take_part(job_path, job.where, work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
