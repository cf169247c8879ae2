"""A model with low-rank layers beside its own: peft's, put into the model itself, so that its class stays as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spin_components.errors import ConfigError, IntegrityError
from spin_components.lora.files import read_config, read_weights
from spin_components.lora_settings import LoraSettings

TRAINED = "default"
"""peft's name for the adapter that is trained."""
FROZEN = "reference"
"""The adapter that a quantised policy's predecessors make together."""


def add_trained(model: Any, lora: LoraSettings, *, seed: int) -> None:
    """Give a model a fresh adapter, and leave nothing else of it to be trained.

    B is zero, so the model computes what it did before, to the bit.

    Args:
        model: of transformers; may have a frozen adapter already.
        lora: rank, scale and layers.
        seed: of A: the same on every rank, and none of the run's other random numbers moves.

    Raises:
        ConfigError: no layer is of a name that is asked for, or one is an embedding.
    """
    from peft import LoraConfig

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, bias="none", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            _inject(model, config, TRAINED)
        except ValueError as error:
            raise ConfigError(
                f"lora.target_modules = {lora.target_modules!r} does not suit {type(model).__name__}: {error}"
            ) from error
    _refuse_embeddings(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{TRAINED}." in name)


def add_frozen(model: Any, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Give a model an adapter that is there already, not to be trained.

    Raises:
        IntegrityError: the adapter is of another model.
    """
    _inject_saved(model, config, FROZEN)
    load_weights(model, weights, FROZEN)
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def merge(model: Any, folder: Path) -> None:
    """Add a saved adapter to a model's own weights: W + B A alpha / r, in float32, by peft.

    Raises:
        IntegrityError: the adapter is of another model.
    """
    _inject_saved(model, read_config(folder), TRAINED)
    load_weights(model, read_weights(folder), TRAINED)
    for name, layer in list(_adapted(model)):
        layer.merge(adapter_names=[TRAINED])
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config


def load_weights(model: Any, weights: Mapping[str, Tensor], adapter: str = TRAINED) -> None:
    """Put saved weights into an adapter that a model has.

    Raises:
        IntegrityError: names or shapes are others.
    """
    mine = adapter_parameters(model, adapter)
    shapes = {name: tuple(parameter.shape) for name, parameter in mine.items()}
    if (found := {name: tuple(tensor.shape) for name, tensor in weights.items()}) != shapes:
        name = min({*found.items()} ^ {*shapes.items()})[0]
        raise IntegrityError(
            f"the adapter is not of this model: {name} has the shape {found.get(name)}, expected {shapes.get(name)}"
        )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(weights[name])


def adapter_parameters(model: Any, adapter: str = TRAINED) -> dict[str, Any]:
    """An adapter's parameters by their names in a file, `LAYER.lora_A.weight`."""
    return {
        file_name(name, adapter): parameter
        for name, parameter in model.named_parameters()
        if f".{adapter}." in name and ".lora_" in name
    }


def file_name(name: str, adapter: str = TRAINED) -> str:
    """A parameter's name in a file: without the adapter's."""
    return name.replace(f".{adapter}.", ".")


def saved_config(model: Any) -> dict[str, Any]:
    """peft's configuration of the trained adapter as plain JSON, the same each time; layers by the ends of their names
    where that is enough."""
    names = sorted({re.sub(r"\.lora_[AB]\.weight$", "", name) for name in adapter_parameters(model)})
    ends = sorted({name.rpartition(".")[2] for name in names})
    matched = {
        name
        for name, _ in model.named_modules()
        if name.rpartition(".")[2] in ends and not re.search(r"\.(base_layer|lora_[AB])\b", name)
    }
    plain = model.peft_config[TRAINED].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in plain.items()}
    return {**config, "target_modules": ends if matched == set(names) else names, "inference_mode": True}


def _inject_saved(model: Any, config: Mapping[str, Any], adapter: str) -> None:
    from peft import LoraConfig

    names = ("r", "lora_alpha", "target_modules", "fan_in_fan_out")
    given = {name: config[name] for name in names if name in config}
    try:
        _inject(model, LoraConfig(**given, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"), adapter)
    except ValueError as error:
        raise IntegrityError(f"the adapter is not of this model: {error}") from error


def _inject(model: Any, config: Any, adapter: str) -> None:
    """Put an adapter beside those that are there, all of them at work."""
    from peft import inject_adapter_in_model

    vars(model).pop("peft_config", None)  # peft warns where a model has one
    inject_adapter_in_model(config, model, adapter_name=adapter)
    for _, layer in _adapted(model):
        layer.set_adapter(sorted(layer.lora_A, reverse=True))


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _refuse_embeddings(model: Any) -> None:
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    if found := [name for name, layer in _adapted(model) if any(layer is each for each in embeddings)]:
        raise ConfigError(
            f"lora.target_modules takes in {', '.join(found)}: embeddings and the output layer may be one tensor, and "
            "are not adapted; name other layers, or 'all-linear'"
        )
