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
class Sampling:
    """Sampling parameters shared by all prompts.

    Attributes:
        settings: section `[generation]`.
        eos_ids: ids that end an answer.
        seed: of the random numbers.
        iteration: selects values that are set for each iteration.
        engine: number of the engine, where several divide the prompts.
        numbers: of the prompts that this engine gets, among those of all engines; None for 0, 1, …
    """

    settings: GenerationSettings
    eos_ids: list[int]
    seed: int
    iteration: int = 0
    engine: int = 0
    numbers: Sequence[int] | None = None

    @property
    def engine_seed(self) -> int:
        """Seed of the engine, where one generator serves all of its prompts."""
        return derive_seed(self.seed, "engine", self.engine) if self.engine else self.seed

    def number_of(self, index: int) -> int:
        """Number among the prompts of all engines of the prompt that this engine got as its `index`-th."""
        return index if self.numbers is None else self.numbers[index]

    @property
    def temperature(self) -> float:
        """Temperature of the iteration; 0 is greedy decoding."""
        return per_iteration(self.settings.temperature, self.iteration)


class Engine(Protocol):
    """Samples one answer for each prompt."""

    name: str

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        """Yield (index of the prompt, answer) as answers finish, in any order, one for each prompt.

        Args:
            prompts: token ids of each prompt.
            max_new_tokens: limit for each prompt, >= 1.
        """

    def close(self) -> None:
        """Free the model."""


class Report(Protocol):
    """Called with the number of answers that are finished, and of their tokens."""

    def __call__(self, done: int, *, num_tokens: int) -> None: ...


def collect_answers(
    engine: Engine, prompts: Sequence[Prompt], *, max_new_tokens: int, max_length: int, report: Report
) -> list[Answer]:
    """Sample one answer to each prompt.

    Args:
        engine: the model.
        prompts: of any lengths below `max_length`.
        max_new_tokens: the most tokens of an answer.
        max_length: the most tokens of a prompt and its answer together.
        report: called after each answer.

    Returns: the answers, in the order of the prompts.

    Raises:
        EngineError: some prompts got none.
    """
    limits = [min(max_new_tokens, max_length - len(prompt.prompt_ids)) for prompt in prompts]
    answers: dict[int, Answer] = {}
    num_tokens = 0
    for i, answer in engine.generate([prompt.prompt_ids for prompt in prompts], limits):
        answers[i] = answer
        num_tokens += len(answer.token_ids)
        report(len(answers), num_tokens=num_tokens)
    if len(answers) != len(prompts):
        raise EngineError(f"the {engine.name} engine returned {len(answers)} answers for {len(prompts)} prompts")
    return [answers[i] for i in range(len(prompts))]
