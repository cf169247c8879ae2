"""One of several engines that answer the blocks of a shard; `python -m spin_components.generate.rank JOB.json`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from spin_components.generate.job import GenerationJob
from spin_components.machine import num_cores
from spin_components.runtime.ranks import begin_rank, leave_torchrun, take_cores, take_gpus, take_part, take_turns


def main(job_path: Path) -> None:
    """Answer blocks until none is left; a model is loaded only where there is one to begin with."""
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
        from spin_components.engine.engine import Sampling
        from spin_components.engine.open import open_engine
        from spin_components.generate.blocks import answer_blocks
        from spin_components.model.compute import resolve_compute, set_threads

        settings, prompts = job.settings, read_rows(job.prompts, Prompt)
        blocks = settings.generation.blocks(len(prompts))
        taken = take_turns(job_path, len(blocks))
        first = next(taken, None)
        if first is None:
            return {"blocks": []}
        set_threads(settings.hardware)
        compute = resolve_compute(settings.hardware, settings.training.precision)
        sampling = Sampling(settings.generation, job.eos_ids, job.seed, job.iteration, job.capacity)
        own = ((blocks[index], [prompts[number] for number in blocks[index]]) for index in chain([first], taken))
        with closing(open_engine(job.engine, job.folder, settings.model, sampling, compute)) as engine:
            answered = [
                [numbers.start, [[answer.token_ids, answer.finish_reason, answer.logprob] for answer in answers]]
                for numbers, answers in answer_blocks(
                    engine, own, settings, report=lambda done, num_tokens: report(done)
                )
            ]
        return {"blocks": answered}

    take_part(job_path, job.where, work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
