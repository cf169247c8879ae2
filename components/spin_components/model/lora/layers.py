"""Low-rank layers of peft, injected into a model without wrapping it, so that its class stays the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spin_components.errors import ConfigError, IntegrityError
from spin_components.model.lora.files import read_config, read_weights
from spin_components.settings.training import LoraSettings

TRAINED = "default"
"""peft's name for the adapter that is trained."""
FROZEN = "reference"
"""peft's name for the adapter that joins those of all earlier iterations, below a quantized base."""


def add_trained(model: Any, lora: LoraSettings, *, seed: int) -> None:
    """Add a new adapter to a model and freeze all other parameters.

    B is initialised to zero, so the model's outputs do not change, bit by bit.

    Args:
        model: of transformers; may have a frozen adapter already.
        lora: rank, scale and layers.
        seed: for A, the same on every rank; torch's global random state is not changed.

    Raises:
        ConfigError: a layer of `lora.target_modules` does not exist or is an embedding.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        exclude_modules=_routers(model) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's linear layers
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            _inject(model, config, TRAINED)
        except ValueError as error:
            raise ConfigError(
                f"lora.target_modules = {lora.target_modules!r} does not fit {type(model).__name__}: {error}"
            ) from error
    _check_no_embeddings(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{TRAINED}." in name)


def check_adapter(model: Any, lora: LoraSettings, warn: Callable[[str], None]) -> None:
    """Refuse a model that takes no adapter, before there is work for it.

    Args:
        model: of transformers, without its weights; left with an adapter.
        lora: rank, scale and layers.
        warn: called where experts keep their weights.

    Raises:
        ConfigError: the layers of `lora.target_modules` do not fit.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    add_trained(model, lora, seed=0)
    experts = [
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "experts" in name.split(".") and parameter.ndim > 2
    ]
    if experts:
        warn(
            f"lora.r = {lora.r}: adapters are of linear layers, and the experts of {type(model).__name__}, "
            f"{sum(experts) / total:.0%} of its weights, are one tensor a layer: they stay as they are"
        )


def add_frozen(model: Any, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Add a saved adapter to a model and freeze all parameters.

    Raises:
        IntegrityError: the adapter does not belong to this model.
    """
    _inject_saved(model, config, FROZEN)
    load_weights(model, weights, FROZEN)
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def merge(model: Any, folder: Path) -> None:
    """Merge a saved adapter into a model's weights: W + B A alpha / r, in float32, by peft.

    Raises:
        IntegrityError: the adapter does not belong to this model.
    """
    _inject_saved(model, read_config(folder), TRAINED)
    load_weights(model, read_weights(folder), TRAINED)
    for name, layer in list(_adapted(model)):
        layer.merge(adapter_names=[TRAINED])
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config


def load_weights(model: Any, weights: Mapping[str, Tensor], adapter: str = TRAINED) -> None:
    """Copy saved weights into an adapter of a model.

    Raises:
        IntegrityError: names or shapes differ.
    """
    parameters = adapter_parameters(model, adapter)
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if (shapes := {name: tuple(tensor.shape) for name, tensor in weights.items()}) != expected:
        name = min({*shapes.items()} ^ {*expected.items()})[0]
        raise IntegrityError(
            "the adapter does not belong to this model: "
            f"{name} has the shape {shapes.get(name)}, expected {expected.get(name)}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def adapter_parameters(model: Any, adapter: str = TRAINED) -> dict[str, Any]:
    """An adapter's parameters by their names in its file, `LAYER.lora_A.weight`."""
    return {
        file_name(name, adapter): parameter
        for name, parameter in model.named_parameters()
        if f".{adapter}." in name and ".lora_" in name
    }


def file_name(name: str, adapter: str = TRAINED) -> str:
    """Name of a parameter in the adapter's file: the model's name without that of the adapter."""
    return name.replace(f".{adapter}.", ".")


def saved_config(model: Any) -> dict[str, Any]:
    """peft's configuration of the trained adapter as plain JSON with a fixed order.

    `target_modules` has the last parts of the layers' names if these match the adapted layers and no others, else full
    names.
    """
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
        raise IntegrityError(f"the adapter does not belong to this model: {error}") from error


def _inject(model: Any, config: Any, adapter: str) -> None:
    """Add an adapter to a model's layers and activate all its adapters."""
    from peft import inject_adapter_in_model

    vars(model).pop("peft_config", None)  # peft warns about an existing one
    with _linear_layers_alone():
        inject_adapter_in_model(config, model, adapter_name=adapter)
    for _, layer in _adapted(model):
        layer.set_adapter(sorted(layer.lora_A, reverse=True))


@contextmanager
def _linear_layers_alone() -> Iterator[None]:
    """Have peft adapt the modules that a configuration names, and no others.

    For architectures whose experts were modules in transformers 4 it would take names of experts, also those of a
    shared one, for tensors that hold all experts, so that adapters of earlier peft versions load. Such an adapter
    cannot be injected again from its own configuration.
    """
    from peft.utils import transformers_weight_conversion as conversion

    convert = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *args, **kwargs: None
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers = convert


def _routers(model: Any) -> list[str]:
    """Linear layers of a class of the architecture's own, which return more than a product: Llama 4's routers."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module).__module__.startswith("transformers.models.")
    ]


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _check_no_embeddings(model: Any) -> None:
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    if names := [name for name, layer in _adapted(model) if any(layer is each for each in embeddings)]:
        raise ConfigError(
            f"lora.target_modules includes {', '.join(names)}: embeddings and the output layer may be one tensor, and "
            "are not adapted; name other layers, or 'all-linear'"
        )
