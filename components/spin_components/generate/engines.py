"""Answers to the prompts of a shard by several engines, which share its blocks and the devices of one machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from spin_components.data.shards import Prompt, write_rows
from spin_components.engine.engine import Answer, Sampling
from spin_components.generate.job import GenerationJob
from spin_components.runtime.ranks import launch
from spin_components.settings.settings import Settings


def answer_with_engines(
    name: str,
    folder: Path,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    settings: Settings,
    num: int,
    *,
    on_gpu: bool,
    report: Callable[[int], None],
) -> list[Answer]:
    """Sample one answer to each prompt.

    Each engine takes the next block as soon as it has answered one, so that none waits for another's longer answers.
    The answers are those of one engine, but for what the devices or the number of threads round otherwise.

    Args:
        name: of the engines.
        folder: of the model.
        prompts: of the shard.
        sampling: of the shard, with the capacity of its blocks.
        settings: of the run.
        num: of engines.
        on_gpu: whether each gets `generation.tensor_parallel` GPUs; else it gets a share of the cores.
        report: called with the number of answers.

    Returns: the answers, in the order of the prompts.

    Raises:
        EngineError: an engine failed.
    """
    with tempfile.TemporaryDirectory(prefix="spin-generation-") as temporary:
        path = Path(temporary, "prompts.parquet")
        write_rows(path, Prompt, prompts)
        job = GenerationJob(
            where=f"iteration {sampling.iteration}, {num} {name} engines",
            engine=name,
            folder=folder,
            prompts=path,
            eos_ids=sampling.eos_ids,
            seed=sampling.seed,
            iteration=sampling.iteration,
            capacity=sampling.capacity,
            on_gpu=on_gpu,
            settings=settings,
        )
        outcomes = launch("spin_components.generate.rank", job, num, where=job.where, report=report)
    answers = {
        number: Answer(*answer)
        for outcome in outcomes
        for start, block in outcome["blocks"]
        for number, answer in enumerate(block, start=start)
    }
    report(len(answers))
    return [answers[number] for number in range(len(prompts))]
