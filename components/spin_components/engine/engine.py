"""The interface of sampling engines, and the choice of one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from spin_components.algorithm.batching import derive_seed
from spin_components.data.shards import Prompt
from spin_components.errors import EngineError
from spin_components.settings.generation import GenerationSettings
from spin_components.settings.section import per_iteration

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """A sampled answer.

    Attributes:
        token_ids: sampled ids, including the EOS only if it was sampled.
        finish_reason: `stop` (EOS sampled), `stop_string`, or `length`.
        logprob: sum over the tokens in nats, under the model without temperature, filters or penalties.
    """

    token_ids: list[int]
    finish_reason: str
    logprob: float = field(compare=False)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest call that an engine will get. Engines that share prompts have the same, so that they compute alike.

    Attributes:
        num_tokens: of the longest prompt and its answer together.
        num_prompts: of the call with most of them.
    """

    num_tokens: int
    num_prompts: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters shared by all prompts.

    Attributes:
        settings: section `[generation]`.
        eos_ids: ids that end an answer.
        seed: of the random numbers.
        iteration: selects values that are set for each iteration.
        capacity: for which the engine is started; None for what the first call of `generate` needs.
    """

    settings: GenerationSettings
    eos_ids: list[int]
    seed: int
    iteration: int = 0
    capacity: Capacity | None = None

    def seed_of(self, numbers: Sequence[int]) -> int:
        """Seed of one generator that serves all prompts of a call.

        Args:
            numbers: of the prompts; see `Engine.generate`.
        """
        return derive_seed(self.seed, "block", numbers[0]) if any(numbers[:1]) else self.seed

    @property
    def temperature(self) -> float:
        """Temperature of the iteration; 0 is greedy decoding."""
        return per_iteration(self.settings.temperature, self.iteration)


class Engine(Protocol):
    """Samples one answer for each prompt.

    The answers of a call of `generate` are a function of its arguments, the model, the sampling parameters and the
    machine: they depend neither on earlier calls nor on which engine of several gets the call.
    """

    name: str

    def generate(
        self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int], *, numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """Yield (index of the prompt, answer) as answers finish, in any order, one for each prompt.

        Args:
            prompts: token ids of each prompt.
            max_new_tokens: limit for each prompt, >= 1.
            numbers: of the prompts among all that share the seed, from which random numbers follow; None for 0, 1, …
        """

    def close(self) -> None:
        """Free the model."""


class Report(Protocol):
    """Called with the number of answers that are finished, and of their tokens."""

    def __call__(self, done: int, *, num_tokens: int) -> None: ...


def answer_limits(prompts: Sequence[Prompt], *, max_new_tokens: int, max_length: int) -> list[int]:
    """The most tokens of each answer; arguments as of `collect_answers`."""
    return [min(max_new_tokens, max_length - len(prompt.prompt_ids)) for prompt in prompts]


def collect_answers(
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    max_length: int,
    report: Report,
    numbers: Sequence[int] | None = None,
) -> list[Answer]:
    """Sample one answer to each prompt.

    Args:
        engine: the model.
        prompts: of any lengths below `max_length`.
        max_new_tokens: the most tokens of an answer.
        max_length: the most tokens of a prompt and its answer together.
        report: called after each answer.
        numbers: of the prompts; see `Engine.generate`.

    Returns: the answers, in the order of the prompts.

    Raises:
        EngineError: some prompts got none.
    """
    limits = answer_limits(prompts, max_new_tokens=max_new_tokens, max_length=max_length)
    answers: dict[int, Answer] = {}
    num_tokens = 0
    for i, answer in engine.generate([prompt.prompt_ids for prompt in prompts], limits, numbers=numbers):
        answers[i] = answer
        num_tokens += len(answer.token_ids)
        report(len(answers), num_tokens=num_tokens)
    if len(answers) != len(prompts):
        raise EngineError(f"the {engine.name} engine returned {len(answers)} answers for {len(prompts)} prompts")
    return [answers[i] for i in range(len(prompts))]
