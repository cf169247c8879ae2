"""Validation of a policy by several processes of one machine, which divide the held-out records by their tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_components.algorithm.shares import shares
from spin_components.data.shards import AnswerLoss, Prompt, Sample, write_rows
from spin_components.engine.engine import Answer, Sampling
from spin_components.runtime.ranks import ALLOCATOR, launch
from spin_components.settings.settings import Settings
from spin_components.validate.job import Part, ValidationJob


@dataclass(frozen=True, slots=True)
class Measured:
    """What a policy gave on the held-out records.

    Attributes:
        losses: of the human answers, in the order of the batches.
        sampled, greedy: the policy's answers; empty where a loss is not finite, or none were to be given.
        samples: the sampled answers with their scores.
    """

    losses: list[AnswerLoss]
    sampled: list[Answer]
    greedy: list[Answer]
    samples: list[Sample]


def measure_in_ranks(
    folder: Path,
    plain: Path,
    batches: Sequence[Sequence[Prompt]],
    chosen: Sequence[Prompt],
    sampling: Sampling,
    settings: Settings,
    ranks: int,
    *,
    is_sharded: bool = False,
    reference: Mapping[int, list[int]] | None,
    where: str,
    report: Callable[[int], None],
) -> Measured:
    """Measure a policy. A human answer is computed in the same batch whatever the number of processes.

    Args:
        folder: of the policy, as `model.stored.open_scored` returns it.
        plain: of the policy, as `model.stored.open_model` returns it.
        batches: of held-out records.
        chosen: those of them that the policy answers.
        sampling: of these answers.
        settings: of the run.
        ranks: number of processes.
        is_sharded: whether the model's weights are divided among them.
        reference: token ids of the reference's answers, by index of the prompt; None for the base model.
        where: for errors.
        report: called with the number of human answers done.

    Raises:
        EngineError: a process failed.
    """
    prompts = [prompt for batch in batches for prompt in batch]
    place_of = {prompt.index: place for place, prompt in enumerate(prompts)}
    own_batches = shares([sum(map(_num_tokens, batch)) for batch in batches], ranks)
    limit = settings.generation.max_new_tokens
    own_chosen = shares([len(prompt.prompt_ids) + limit for prompt in chosen], ranks)
    parts = [
        Part(
            batches=[[place_of[prompt.index] for prompt in batches[number]] for number in numbers],
            sampled=[place_of[chosen[number].index] for number in answered],
            numbers=answered,
        )
        for numbers, answered in zip(own_batches, own_chosen, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="spin-validation-") as temporary:
        path = Path(temporary, "prompts.parquet")
        write_rows(path, Prompt, prompts)
        job = ValidationJob(
            where=where,
            folder=folder,
            plain=plain,
            prompts=path,
            parts=parts,
            eos_ids=sampling.eos_ids,
            seed=sampling.seed,
            reference=None if reference is None else dict(reference),
            settings=settings,
            is_sharded=is_sharded,
        )
        outcomes = launch("spin_components.validate.rank", job, ranks, where=where, variables=ALLOCATOR, report=report)
    losses = {
        number: [AnswerLoss(*loss) for loss in batch]
        for numbers, outcome in zip(own_batches, outcomes, strict=True)
        for number, batch in zip(numbers, outcome["losses"], strict=True)
    }
    report(sum(map(len, losses.values())))
    answers = {
        number: tuple(outcome[kind][row] for kind in ("sampled", "greedy", "samples"))
        for answered, outcome in zip(own_chosen, outcomes, strict=True)
        if "samples" in outcome
        for row, number in enumerate(answered)
    }
    rows = [answers[number] for number in range(len(chosen))] if len(answers) == len(chosen) else []
    return Measured(
        [loss for number in range(len(batches)) for loss in losses[number]],
        [Answer(*sampled) for sampled, _, _ in rows],
        [Answer(*greedy) for _, greedy, _ in rows],
        [Sample(*sample) for _, _, sample in rows],
    )


def _num_tokens(prompt: Prompt) -> int:
    return len(prompt.prompt_ids) + len(prompt.actual_ids)
