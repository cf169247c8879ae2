"""The interface of generation engines, and the choice of one."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from spin_components.data.shards import Prompt
from spin_components.device import Compute
from spin_components.errors import ConfigError, EngineError
from spin_components.generation_settings import GenerationSettings
from spin_components.section import per_iteration
from spin_components.settings import ModelSettings

logger = logging.getLogger(__name__)

WORTHWHILE_CPU_TOKENS = 50_000
"""On a CPU vLLM starts in 30 to 90 s; `transformers` generates fewer tokens than these in less time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer.

    Attributes:
        token_ids: EOS is among them only if it was sampled.
        finish_reason: why sampling ended: `stop` or `length`.
        logprob: log pi(answer | prompt) in nats, summed over all tokens, under the model itself: before temperature,
            filters and penalties.
    """

    token_ids: list[int]
    finish_reason: str
    logprob: float = field(compare=False)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample, the same for all prompts.

    Attributes:
        settings: `[generation]`.
        eos_ids: token ids that end an answer.
        seed: of the whole call.
        iteration: t, which schedules depend on.
    """

    settings: GenerationSettings
    eos_ids: list[int]
    seed: int
    iteration: int = 0

    @property
    def temperature(self) -> float:
        """The temperature of this iteration."""
        return per_iteration(self.settings.temperature, self.iteration)


class Engine(Protocol):
    """Samples one answer to each prompt."""

    name: str

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        """Yield (index of the prompt, answer) as answers are finished, in any order, each once.

        Args:
            prompts: token ids.
            max_new_tokens: of each prompt's answer, >= 1.
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


def choose_engine(settings: GenerationSettings, compute: Compute, num_prompts: int) -> str:
    """Resolve `generation.engine`: with `auto`, vLLM where it is installed and faster, `transformers` elsewhere.

    Raises:
        ConfigError: vLLM is asked for and not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if settings.engine == "vllm" and not installed:
        raise ConfigError("generation.engine = 'vllm', but vLLM is not installed here; use 'transformers' or 'auto'")
    if settings.engine != "auto":
        return settings.engine
    worthwhile = compute.device.type == "cuda" or num_prompts * settings.max_new_tokens >= WORTHWHILE_CPU_TOKENS
    return "vllm" if installed and worthwhile else "transformers"


def open_engine(name: str, folder: Path, model: ModelSettings, sampling: Sampling, compute: Compute) -> Engine:
    """Load a model into the named engine."""
    if name == "vllm":
        from spin_components.generate.vllm_engine import VllmEngine

        return VllmEngine(folder, model, sampling, compute)
    from spin_components.generate.transformers_engine import TransformersEngine

    return TransformersEngine(folder, model, sampling, compute)
