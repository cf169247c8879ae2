"""One of several engines that answer the prompts of a shard; `python -m spin_components.generate.rank JOB.json`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from spin_components.generate.job import GenerationJob
from spin_components.machine import num_cores
from spin_components.runtime.ranks import begin_rank, leave_torchrun, take_cores, take_gpus, take_part


def main(job_path: Path) -> None:
    """Answer this engine's prompts."""
    rank, ranks = begin_rank()
    job = GenerationJob.model_validate_json(job_path.read_bytes())
    if job.on_gpu:
        take_gpus(rank, job.settings.generation.tensor_parallel)  # before torch looks for them
    else:
        take_cores(rank, ranks)
        os.environ["OMP_NUM_THREADS"] = str(num_cores())

    def work(report: Callable[[int], None]) -> dict[str, Any]:
        leave_torchrun()
        from spin_components.data.shards import Prompt, read_rows
        from spin_components.engine.engine import Sampling, collect_answers
        from spin_components.engine.open import open_engine
        from spin_components.model.compute import resolve_compute, set_threads

        settings, part = job.settings, job.parts[rank]
        prompts = read_rows(part.prompts, Prompt)
        if not prompts:
            return {"answers": []}
        set_threads(settings.hardware)
        compute = resolve_compute(settings.hardware, settings.training.precision)
        sampling = Sampling(settings.generation, job.eos_ids, job.seed, job.iteration, rank, part.numbers)
        with closing(open_engine(job.engine, job.folder, settings.model, sampling, compute)) as engine:
            answers = collect_answers(
                engine,
                prompts,
                max_new_tokens=settings.generation.max_new_tokens,
                max_length=settings.data.max_length,
                report=lambda done, num_tokens: report(done),
            )
        return {"answers": [[answer.token_ids, answer.finish_reason, answer.logprob] for answer in answers]}

    take_part(job_path, job.where, work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
