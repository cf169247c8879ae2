"""Results of a policy on held-out records: losses of the human answers, and answers of its own with their scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path

from spin_components.algorithm.packing import Prompted
from spin_components.data.shards import AnswerLoss, Prompt, Sample
from spin_components.engine.engine import Answer, Sampling, collect_answers
from spin_components.engine.open import open_engine
from spin_components.model.compute import Compute
from spin_components.model.frozen import FrozenLoader
from spin_components.model.scoring import answer_losses, load_scored, sampled_logprobs
from spin_components.settings.settings import Settings

_ENGINE = "transformers"
"""vLLM's start takes longer than these few answers, and this engine repeats them for the same seed."""

Report = Callable[[int], None]
"""Called with the number of answers done."""

Turn = Callable[[], AbstractContextManager[object]]
"""Makes a context in which one process at a time loads a model."""


def human_losses(
    folder: Path,
    batches: Sequence[Sequence[Prompt]],
    settings: Settings,
    compute: Compute,
    report: Report,
    loader: FrozenLoader,
    turn: Turn = nullcontext,
) -> list[list[AnswerLoss]]:
    """Losses of the human answers, by batch; the model is freed at the end, before sampling loads its own."""
    with turn():
        model = load_scored(folder, settings, compute, loader).eval()
    losses: list[list[AnswerLoss]] = []
    for batch_losses in answer_losses(model, batches, compute, finite=False):
        losses.append(batch_losses)
        report(sum(map(len, losses)))
    loader.finish()
    return losses


def decodings(sampling: Sampling) -> list[Sampling]:
    """Sampling as it is set, and greedy decoding, where that is another."""
    greedy = replace(sampling, settings=sampling.settings.model_copy(update={"temperature": 0.0}))
    return [sampling] if sampling.temperature == 0 else [sampling, greedy]


def sample_answers(
    folder: Path,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    settings: Settings,
    compute: Compute,
    report: Report,
    loader: FrozenLoader,
    turn: Turn = nullcontext,
    numbers: Sequence[int] | None = None,
) -> tuple[list[Answer], list[Answer]]:
    """Give two answers to each prompt: sampled, and greedy. Where the settings are greedy, both are the same answers.

    Args:
        folder: of the policy.
        prompts: to answer.
        sampling: with the settings of iteration 0.
        settings: of the run.
        compute: device and precision.
        report: called with the number of answers done, over both decodings.
        loader: of the model.
        turn: entered to load a model.
        numbers: of the prompts among all that are answered; None for 0, 1, …
    """
    answers = []
    for number, each in enumerate(decodings(sampling)):
        begun = number * len(prompts)
        with turn():
            opened = open_engine(_ENGINE, folder, settings.model, each, compute, loader)
        with closing(opened) as engine:
            answers.append(
                collect_answers(
                    engine,
                    prompts,
                    max_new_tokens=settings.generation.max_new_tokens,
                    max_length=settings.data.max_length,
                    report=lambda done, num_tokens, begun=begun: report(begun + done),
                    numbers=numbers,
                )
            )
        loader.finish()
    return answers[0], answers[-1]


def score_samples(
    folder: Path,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    settings: Settings,
    compute: Compute,
    reference: Mapping[int, list[int]] | None,
    loader: FrozenLoader,
    turn: Turn = nullcontext,
) -> list[Sample]:
    """The policy's answers with its log-probabilities of them, and of the reference's answers to the same prompts.

    Args:
        folder: of the policy.
        prompts: that were answered.
        answers: to them.
        settings: of the run.
        compute: device and precision.
        reference: token ids of the reference's answers, by index of the prompt; None for the base model.
        loader: of the model.
        turn: entered to load a model.
    """
    with turn():
        model = load_scored(folder, settings, compute, loader).eval()
    groups = [
        Prompted(prompt.prompt_ids, (answer.token_ids, reference[prompt.index]))
        if reference is not None
        else Prompted(prompt.prompt_ids, (answer.token_ids,))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    logprobs = sampled_logprobs(model, groups, settings.validation, compute)
    loader.finish()
    return [
        Sample(
            prompt.index,
            answer.token_ids,
            answer.finish_reason,
            row[0],
            row[1] if reference is not None else math.nan,
        )
        for prompt, answer, row in zip(prompts, answers, logprobs, strict=True)
    ]
