"""Answers to the prompts of a shard by several engines, which divide the prompts and the devices of one machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from spin_components.algorithm.shares import shares
from spin_components.data.shards import Prompt, write_rows
from spin_components.engine.engine import Answer, Sampling
from spin_components.generate.job import GenerationJob, Part
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

    With the `transformers` engine a prompt's answer does not depend on the number of engines, up to rounding: each
    prompt has its own random numbers. vLLM has one generator an engine.

    Args:
        name: of the engines.
        folder: of the model.
        prompts: of the shard.
        sampling: of the shard.
        settings: of the run.
        num: of engines.
        on_gpu: whether each gets `generation.tensor_parallel` GPUs; else it gets a share of the cores.
        report: called with the number of answers.

    Returns: the answers, in the order of the prompts.

    Raises:
        EngineError: an engine failed.
    """
    longest = settings.data.max_length
    costs = [min(longest, len(prompt.prompt_ids) + settings.generation.max_new_tokens) for prompt in prompts]
    numbers = shares(costs, num)
    with tempfile.TemporaryDirectory(prefix="spin-generation-") as temporary:
        parts = []
        for engine, own in enumerate(numbers):
            path = Path(temporary, f"prompts-{engine:05d}.parquet")
            write_rows(path, Prompt, [prompts[i] for i in own])
            parts.append(Part(prompts=path, numbers=own))
        job = GenerationJob(
            where=f"iteration {sampling.iteration}, {num} {name} engines",
            engine=name,
            folder=folder,
            eos_ids=sampling.eos_ids,
            seed=sampling.seed,
            iteration=sampling.iteration,
            parts=parts,
            on_gpu=on_gpu,
            settings=settings,
        )
        outcomes = launch("spin_components.generate.rank", job, num, where=job.where, report=report)
    answers = {
        i: Answer(*answer)
        for own, outcome in zip(numbers, outcomes, strict=True)
        for i, answer in zip(own, outcome["answers"], strict=True)
    }
    report(len(answers))
    return [answers[i] for i in range(len(prompts))]
