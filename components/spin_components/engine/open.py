"""Chooses and opens an engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from spin_components.engine.engine import Engine, Sampling
from spin_components.errors import ConfigError
from spin_components.model.compute import Compute
from spin_components.model.frozen import FrozenLoader
from spin_components.settings.generation import GenerationSettings
from spin_components.settings.run import ModelSettings

WORTHWHILE_CPU_TOKENS = 50_000
"""Tokens above which vLLM is faster than `transformers` on a CPU, where it takes 30 to 90 s to start."""


def choose_engine(settings: GenerationSettings, compute: Compute, num_prompts: int) -> str:
    """Resolve `generation.engine` to the name of an engine.

    Raises:
        ConfigError: it is "vllm" and vLLM is not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if settings.engine == "vllm" and not installed:
        raise ConfigError("generation.engine = 'vllm', but vLLM is not installed here; use 'transformers' or 'auto'")
    if settings.engine != "auto":
        return settings.engine
    worthwhile = compute.device.type == "cuda" or num_prompts * settings.max_new_tokens >= WORTHWHILE_CPU_TOKENS
    return "vllm" if installed and worthwhile else "transformers"


def open_engine(
    name: str,
    folder: Path,
    model: ModelSettings,
    sampling: Sampling,
    compute: Compute,
    loader: FrozenLoader | None = None,
) -> Engine:
    """Create an engine by name for the model in a folder; with `transformers`, a loader may place the model."""
    if name == "vllm":
        from spin_components.engine.vllm_engine import VllmEngine

        return VllmEngine(folder, model, sampling, compute)
    from spin_components.engine.transformers_engine import TransformersEngine

    return TransformersEngine(folder, model, sampling, compute, loader)
