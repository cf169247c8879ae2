"""What an engine must do, and which one a step takes."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from spin_components.device import Compute
from spin_components.errors import ConfigError
from spin_components.generation_settings import GenerationSettings
from spin_components.section import per_iteration
from spin_components.settings import ModelSettings

logger = logging.getLogger(__name__)

WORTHWHILE_CPU_TOKENS = 50_000
"""On a CPU vLLM starts in 30 to 90 s; below so many tokens `transformers` is done sooner."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Sampled token ids, the EOS among them only where it was sampled, and why sampling ended.

    Attributes:
        logprob: of all the tokens, in nats, under the model itself: no temperature, no filter, no penalty.
    """

    token_ids: list[int]
    finish_reason: str
    logprob: float = field(compare=False)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What an engine is asked for, the same for all prompts but the length."""

    settings: GenerationSettings
    eos_ids: list[int]
    seed: int
    iteration: int = 0

    @property
    def temperature(self) -> float:
        """Of this iteration."""
        return per_iteration(self.settings.temperature, self.iteration)


class Engine(Protocol):
    """Samples one answer a prompt."""

    name: str

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        """Yield (place of the prompt, answer) as answers are finished, in any order, each once.

        Args:
            prompts: token ids.
            max_new_tokens: at most so many for each prompt, >= 1.
        """

    def close(self) -> None:
        """Free the model."""


def choose_engine(settings: GenerationSettings, compute: Compute, num_prompts: int) -> str:
    """The engine's name, with `auto` decided.

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
