"""Blocks of a shard's prompts: one engine samples a block at a time, whichever is free.

An engine's answers to a block depend on nothing but the block (`engine.engine.Engine`), so that the answers to a shard
are the same for any number of engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from spin_components.data.shards import Prompt
from spin_components.engine.engine import Answer, Capacity, Engine, Report, Sampling, answer_limits, collect_answers
from spin_components.settings.settings import Settings


def with_capacity(sampling: Sampling, prompts: Sequence[Prompt], settings: Settings) -> Sampling:
    """Sampling by engines that are started for the largest block and the longest sequence of a shard.

    Args:
        sampling: of the shard.
        prompts: of the shard.
        settings: of the run.
    """
    limits = answer_limits(
        prompts, max_new_tokens=settings.generation.max_new_tokens, max_length=settings.data.max_length
    )
    longest = max(len(prompt.prompt_ids) + limit for prompt, limit in zip(prompts, limits, strict=True))
    most = max(map(len, settings.generation.blocks(len(prompts))))
    return replace(sampling, capacity=Capacity(longest, most))


def answer_blocks(
    engine: Engine,
    blocks: Iterable[tuple[range, Sequence[Prompt]]],
    settings: Settings,
    report: Report,
) -> Iterator[tuple[range, list[Answer]]]:
    """Sample one answer to each prompt of some blocks.

    Args:
        engine: the model.
        blocks: each with the numbers of its prompts in the shard.
        settings: of the run.
        report: called with the number of answers, and `num_tokens` of them, over all blocks so far.

    Yields: the numbers of a block and its answers, in the order of the prompts.
    """
    done = tokens = 0
    for numbers, prompts in blocks:
        answers = collect_answers(
            engine,
            prompts,
            max_new_tokens=settings.generation.max_new_tokens,
            max_length=settings.data.max_length,
            report=_added(report, done, tokens),
            numbers=numbers,
        )
        done += len(answers)
        tokens += sum(len(answer.token_ids) for answer in answers)
        yield numbers, answers


def _added(report: Report, answers: int, tokens: int) -> Report:
    """Report what is done of a block together with what was done before it."""

    def report_sum(done: int, *, num_tokens: int) -> None:
        report(answers + done, num_tokens=tokens + num_tokens)

    return report_sum
