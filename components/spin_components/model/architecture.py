"""Checks that a model's weight files hold what its architecture expects, from their headers alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spin_components.errors import ModelError
from spin_components.model.families import check_family
from spin_components.model.loading import import_generation
from spin_components.model.loading_report import check_loaded
from spin_components.settings.run import ModelSettings
from spin_components.settings.training import LoraSettings
from spin_components.store.four_bit_files import original_weights
from spin_components.store.model_files import StoredWeight, some_of, weight_files


@dataclass(frozen=True, slots=True)
class Architecture:
    """Limits of a model that token ids and positions must keep to.

    Attributes:
        num_embeddings: rows of the embedding: ids are below it.
        num_positions: rows of a table of learned positions; None where positions are computed.
    """

    num_embeddings: int
    num_positions: int | None


def check_architecture(
    folder: Path,
    settings: ModelSettings,
    *,
    what: str,
    warn: Callable[[str], None],
    lora: LoraSettings | None = None,
) -> Architecture | None:
    """Load a model without the contents of its weights, by transformers' own rules, and check that none is left out.

    Args:
        folder: with the model's files and nothing beside them.
        settings: of the model.
        what: origin of the folder, for error messages.
        warn: called where weights are left unused on purpose, or keep their values beside an adapter, or where the
            check is impossible.
        lora: of the adapter that is to be trained, if any.

    Returns: limits of the model; None where it cannot be built without its weights.

    Raises:
        ModelError: transformers does not know the model, or weights are missing, left over or of another shape.
        ConfigError: the adapter does not fit the model.
    """
    import_generation()
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
        weights = original_weights(weight_files(folder, config.to_dict()))
        if hasattr(config, "quantization_config"):  # the weights are checked as what they stand for
            del config.quantization_config
        with _quiet():
            with torch.device("meta"):
                kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code))
            if kind.config_class is not type(config) and kind.config_class is type(config.get_text_config()):
                warn(f"{what}: only the language model of this {config.model_type} model is trained and published")
                config = config.get_text_config()
            model, found = kind.from_pretrained(
                None,
                config=config,
                state_dict={name: _on_meta(weight) for name, weight in weights.items()},
                dtype=torch.float32,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, ImportError, AssertionError, AttributeError, TypeError) as error:
        raise ModelError(f"{what}: the model cannot be loaded: {_first_line(error)}") from error
    except (RuntimeError, NotImplementedError) as error:
        warn(f"{what}: whether all weights are there is not known before they are loaded: {_first_line(error)}")
        return None
    unused = check_loaded(found, weights, what=what)
    if unused:
        warn(f"{what}: weights that a causal language model does not have are left out: {some_of(unused)}")
    check_family(model)
    limits = _limits(model)
    if lora is not None and lora.is_on:
        from spin_components.model.lora.layers import check_adapter

        check_adapter(model, lora, warn)
    return limits


def _on_meta(weight: StoredWeight) -> torch.Tensor:
    return torch.empty(weight.shape, dtype=torch.float32 if weight.is_float else torch.int64, device="meta")


def _limits(model: Any) -> Architecture:
    learned = [
        module.num_embeddings - int(getattr(module, "offset", 0))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in ("wpe", "embed_positions")
    ]
    return Architecture(model.get_input_embeddings().weight.shape[0], min(learned, default=None))


def _first_line(error: Exception) -> str:
    """The first line of a message, with the next one where it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]) or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers, whose report of the loading is read instead of printed."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
