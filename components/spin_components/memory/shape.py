"""A model's shape: widths and parameter counts, from its `config.json` and the headers of its safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spin_components.errors import ModelError
from spin_components.memory.experts import Experts, experts_of
from spin_components.settings.training import LoraSettings
from spin_components.store.four_bit_files import original_weights
from spin_components.store.model_files import count_parameters, weight_files

_NAMES = {
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocabulary": ("vocab_size",),
}


_TWO_MATRICES = ("gpt2", "gpt_neox", "gptj", "opt", "phi", "bloom", "falcon", "mpt", "starcoder2", "gpt_bigcode")
"""`model_type` of families whose MLP has no gate: two matrices instead of three."""

_PADDED = ("llama4", "llama4_text", "mamba", "mamba2")
"""`model_type` of families that never pack: chunks that live in the mask alone, recurrent states."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Dimensions of a model that its memory and arithmetic depend on.

    Attributes:
        num_layers: transformer blocks, L.
        hidden: width of the residual stream, h.
        inner: width of an MLP, f.
        queries: width of all query heads together, a.
        keys: width of all key heads together, k; values are as wide.
        num_heads: query heads, H.
        vocabulary: rows of the embedding, V.
        num_parameters: all parameters, tied ones counted once.
        is_gated: whether an MLP has a gate projection besides its two matrices.
        is_tied: whether embedding and output layer share their weights.
        is_counted: whether `num_parameters` was read from safetensors headers; else it was computed from the widths.
        experts: of a mixture of experts; `inner` is then the width of all MLPs that one token goes through.
        state: numbers that a layer with a recurrent state keeps for each channel, s; 0 without such layers.
        streams: copies of the residual stream that run side by side (Gemma 3n's AltUp).
        packs: whether packed rows fit the architecture; padded batches are computed otherwise.
    """

    num_layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    num_heads: int
    vocabulary: int
    num_parameters: int
    is_gated: bool = True
    is_tied: bool = False
    is_counted: bool = False
    experts: Experts | None = None
    state: int = 0
    streams: int = 1
    packs: bool = True

    @property
    def num_active(self) -> int:
        """Parameters that one token is computed with: all but those of the experts that it does not go through."""
        return self.num_parameters - (self.experts.num_idle(self.hidden) if self.experts else 0)

    @property
    def num_cast(self) -> int:
        """Parameters of matrix products, which autocast casts: all but an untied embedding."""
        return self.num_parameters - (0 if self.is_tied else self.vocabulary * self.hidden)

    @property
    def num_linear(self) -> int:
        """Parameters of linear layers, of which a frozen model's are bf16: all but embedding and routed experts."""
        experts = self.experts.num_routed(self.hidden) if self.experts else 0
        return max(self.num_parameters - self.vocabulary * self.hidden - experts, 0)

    @property
    def num_block(self) -> int:
        """Approximate number of parameters of one block."""
        embeddings = self.vocabulary * self.hidden * (1 if self.is_tied else 2)
        return max(self.num_parameters - embeddings, 0) // self.num_layers


def shape_of_folder(folder: Path, *, what: str) -> ModelShape:
    """Read the shape of a model in a local folder, and count the parameters in the files that are loaded.

    Raises:
        ModelError: `config.json` is missing or lacks a width, or a safetensors file has no valid header.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"it holds {type(config).__name__}, expected an object")
    except (OSError, ValueError) as error:
        raise ModelError(f"{what} = '{folder}': config.json cannot be read: {error}") from error
    shape = shape_of_config(config, what=what)
    files = weight_files(folder, config) or sorted(folder.glob("model*.safetensors"))
    number = count_parameters(original_weights(files), is_tied=shape.is_tied)
    return replace(shape, num_parameters=number, is_counted=True) if number else shape


def shape_of_config(config: Mapping[str, Any], *, what: str, num_parameters: int = 0) -> ModelShape:
    """Derive a model's shape from a parsed `config.json`.

    Args:
        config: of a causal language model; of a multimodal model, its `text_config` is used.
        what: origin of the configuration, for error messages.
        num_parameters: if counted; 0 computes them from the widths, which is right for Llama, Mistral, Qwen, Gemma,
            GPT-NeoX and similar architectures and their mixtures of experts, and near for others.

    Of widths that are given for each layer, the largest counts in the shape, and their mean in the parameters. What
    a `text_config` leaves out is the default of its `model_type` in transformers.

    Raises:
        ModelError: a width is missing, or is not a number.
    """
    is_nested = isinstance(config.get("text_config"), Mapping)
    config = _completed(text_config(config)) if is_nested else text_config(config)
    is_recurrent = _is_recurrent(config)
    widths: dict[str, int] = {}
    for name, aliases in _NAMES.items():
        if name == "num_heads" and is_recurrent:
            widths[name] = 0
            continue
        if not (values := _widths(config, *aliases)):
            raise ModelError(f"{what}: config.json has no {' or '.join(aliases)}, so its memory cannot be estimated")
        widths[name] = max(values)
    hidden, heads, layers = widths["hidden"], widths["num_heads"], widths["num_layers"]
    grown = int(hidden * config["expand"]) if is_recurrent and config.get("expand") else 4 * hidden
    inners = _widths(config, "intermediate_size", "n_inner", "ffn_dim") or [grown]
    head = max(_widths(config, "head_dim") + _widths(config, "global_head_dim"), default=hidden // max(heads, 1))
    is_gated = config.get("model_type") not in _TWO_MATRICES
    is_tied = bool(config.get("tie_word_embeddings", True))
    queries, keys = heads * head, max(_widths(config, "num_key_value_heads"), default=heads) * head
    experts = experts_of(config, layers, max(inners))
    computed = _num_attention(config, hidden, queries, keys, layers) + (2 * layers + 1) * hidden
    if experts:
        computed += experts.num_parameters(hidden)
        inners = _widths(config, "intermediate_size_mlp") or inners  # Llama 4's layers without experts
    dense = layers - (experts.num_layers if experts else 0)
    computed += dense * (3 if is_gated else 2) * hidden * sum(inners) // len(inners)
    computed += widths["vocabulary"] * hidden * (1 if is_tied else 2) + _num_per_layer(config, hidden, layers)
    return ModelShape(
        **widths,
        inner=experts.inner_of_token if experts else max(inners),
        queries=queries,
        keys=keys,
        num_parameters=num_parameters or computed,
        is_gated=is_gated,
        is_tied=is_tied,
        is_counted=bool(num_parameters),
        experts=experts,
        state=max(_widths(config, "state_size"), default=0) if is_recurrent else 0,
        streams=max(_widths(config, "altup_num_inputs"), default=1),
        packs=_packs(config) and not is_recurrent,
    )


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of its `model_type`, if it lacks a width and transformers knows the type."""
    if all(_widths(config, *aliases) for aliases in _NAMES.values()):
        return config
    with suppress(ImportError, KeyError, TypeError, ValueError):
        from transformers import CONFIG_MAPPING

        given = {name: value for name, value in config.items() if value is not None}
        return {**CONFIG_MAPPING[config["model_type"]]().to_dict(), **given}
    return config


def _is_recurrent(config: Mapping[str, Any]) -> bool:
    """Whether a model has layers with a recurrent state in place of attention, as Mamba has."""
    return not _widths(config, "num_attention_heads", "n_head", "n_heads") and bool(_widths(config, "state_size"))


def _packs(config: Mapping[str, Any]) -> bool:
    """Whether packed rows fit, as far as the configuration tells; the model itself is probed before it is used so."""
    kinds = config.get("layer_types")
    is_attention = not isinstance(kinds, list) or {*kinds} <= {"full_attention", "sliding_attention"}
    in_mask = config.get("model_type") == "qwen2_moe" and bool(config.get("use_sliding_window"))
    return is_attention and not in_mask and config.get("model_type") not in _PADDED


def _num_attention(config: Mapping[str, Any], hidden: int, queries: int, keys: int, layers: int) -> int:
    """Parameters of attention in all layers, and of linear attention, which three of four have in Qwen3-Next and 3.5.

    There full attention has a gate as wide as its queries, and linear attention queries, keys, values, a gate, and two
    numbers a head, with a convolution over the first three.
    """
    if not _widths(config, "linear_num_value_heads"):
        return layers * hidden * (2 * queries + 2 * keys)
    names = ("linear_num_key_heads", "linear_key_head_dim", "linear_num_value_heads", "linear_value_head_dim")
    key_heads, key_width, heads, width = (max(_widths(config, name), default=0) for name in names)
    mixed = 2 * key_heads * key_width + heads * width
    linear = hidden * (mixed + 2 * heads * width + 2 * heads)
    linear += mixed * max(_widths(config, "linear_conv_kernel_dim"), default=4)
    num = list(config.get("layer_types") or []).count("linear_attention")
    return num * linear + (layers - num) * hidden * (3 * queries + 2 * keys)


def _num_per_layer(config: Mapping[str, Any], hidden: int, layers: int) -> int:
    """Parameters of embeddings that every layer has of its own (Gemma 3n and 4), with their three projections."""
    width = max(_widths(config, "hidden_size_per_layer_input"), default=0)
    return layers * width * (max(_widths(config, "vocab_size_per_layer_input"), default=0) + 3 * hidden)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model's language part: its own, with that of `text_config` over it where it has one."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, Mapping) else dict(config)


def _widths(config: Mapping[str, Any], *aliases: str) -> list[int]:
    """The widths under the first of several names that is set: one, or one a layer; empty if none is a width."""
    value = next((config[alias] for alias in aliases if config.get(alias)), None)
    values: list[Any] = value if isinstance(value, list) else [value]
    return values if all(type(each) is int and each > 0 for each in values) else []


KNOWN: dict[str, dict[str, Any]] = {
    "smollm2-135m-instruct": {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "tiny-llama": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 512,
        "tie_word_embeddings": False,
    },
    "zephyr-7b-sft-full": {
        "model_type": "mistral",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "Meta-Llama-3-70B-Instruct": {
        "model_type": "llama",
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}
"""`config.json` of the models in the shipped configurations, used where a model itself cannot be read."""


NF4_BYTES = 0.516
"""Bytes of a 4-bit weight: half a byte, an 8-bit scale for each block of 64, and 4 bytes for each 256 scales (QLoRA,
arXiv:2305.14314, section 3)."""


def num_trained(shape: ModelShape, lora: LoraSettings) -> int:
    """Number of parameters with gradients and optimizer state: all, or r (inputs + outputs) of each adapted matrix.

    For layers with other names than Llama's, all matrices of a block are counted, an upper bound.
    """
    if not lora.is_on:
        return shape.num_parameters
    h, f, a, k = shape.hidden, shape.inner, shape.queries, shape.keys
    sums = {"q_proj": h + a, "k_proj": h + k, "v_proj": h + k, "o_proj": a + h, "up_proj": h + f, "down_proj": f + h}
    if shape.is_gated:
        sums["gate_proj"] = h + f
    names = sums if lora.target_modules == "all-linear" else [name.rpartition(".")[2] for name in lora.target_modules]
    if not sums.keys() >= set(names):
        names = sums
    return shape.num_layers * lora.r * sum(sums[name] for name in set(names))


def frozen_bytes(shape: ModelShape, lora: LoraSettings) -> int:
    """Bytes of the base weights in scoring and training: float32, or the matrices of blocks in 4 bits."""
    if not lora.is_quantized:
        return 4 * shape.num_parameters
    blocks = shape.num_layers * shape.num_block
    if shape.experts:  # kept in one tensor a layer, which is no linear layer and so not quantized
        blocks = max(blocks - shape.experts.num_routed(shape.hidden), 0)
    return int(4 * (shape.num_parameters - blocks) + NF4_BYTES * blocks)
