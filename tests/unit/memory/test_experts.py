"""Parameters by the widths of a configuration, against those of the models that transformers builds from it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from spin_components.memory.check import estimate_steps
from spin_components.memory.experts import Experts, experts_of
from spin_components.memory.roofline import GPUS, bounds
from spin_components.memory.shape import ModelShape, frozen_bytes, shape_of_config
from spin_components.memory.work import Lengths, Machine, Workload
from spin_components.settings.settings import Settings
from support.bounds import gamma
from support.families import CONFIGS, OTHERS

NEAR = {
    "gemma3n_text": 0.001,
    "gpt2": 0.008,
    "opt": 0.014,
    "gemma4": 0.015,
    "gemma4_moe": 0.015,
    "gemma4_text": 0.015,
    "mamba": 0.05,
    "mamba2": 0.08,
}
"""The largest share of the weights that an estimate leaves out, where a family has more than its widths tell: tables of
positions, convolutions, projections of a state. Counts of whole numbers, the same everywhere."""
PUBLISHED: dict[str, Any] = {
    "gemma4_moe": {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
}
"""What published models of a family have where the default configuration is another's."""
VISION = ("vision_tower", "multi_modal_projector", "embed_vision", "embed_audio", "audio_tower")


def _of_family(family: str) -> tuple[ModelShape, Any]:
    """The shape that a family's default configuration tells, which is a published model's size, and that model."""
    config = CONFIG_MAPPING[{**CONFIGS, **OTHERS}[family].model_type](**PUBLISHED.get(family, {}))
    shape = shape_of_config(config.to_dict(), what=family)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return shape, model


@pytest.mark.parametrize("family", [*CONFIGS, *OTHERS])
def test_parameters_are_those_of_the_model(family: str) -> None:
    shape, model = _of_family(family)
    weights = {name: weight for name, weight in model.named_parameters() if not any(part in name for part in VISION)}
    number = sum(weight.numel() for weight in weights.values())
    vectors = sum(weight.numel() for name, weight in weights.items() if weight.ndim == 1 or "bias" in name)
    # every matrix is counted; some biases and norms are not
    left_out = number - shape.num_parameters
    assert 0 <= left_out <= (NEAR[family] * number if family in NEAR else vectors)
    routed = sum(weight.numel() for name, weight in weights.items() if ".experts." in name and "bias" not in name)
    if routed:
        config = model.config.get_text_config()
        assert shape.experts is not None
        idle = shape.experts.number - shape.experts.active
        assert shape.experts.active == (config.top_k_experts if family == "gemma4_moe" else config.num_experts_per_tok)
        assert (shape.num_parameters - shape.num_active) * shape.experts.number == routed * idle
    else:
        assert shape.num_active == shape.num_parameters


@pytest.mark.parametrize(
    ("config", "number", "active"),  # published: 46.7 billion with 12.9 active, and 30.5 with 3.3
    [
        (
            {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
            | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "tie_word_embeddings": False}
            | {"num_local_experts": 8, "num_experts_per_tok": 2},
            46_702_792_704,
            12_879_925_248,
        ),
        (
            {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48}
            | {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936}
            | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
            | {"tie_word_embeddings": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
            30_532_110_336,
            3_353_020_416,
        ),
    ],
)
def test_total_and_active_parameters_of_published_mixtures(config: dict[str, Any], number: int, active: int) -> None:
    shape = shape_of_config(config, what="x")
    assert (shape.num_parameters, shape.num_active) == (number, active)


def test_layers_with_experts_are_counted_as_each_family_names_them() -> None:
    base = {"num_experts": 4, "num_experts_per_tok": 2}
    for keys, layers in (
        ({}, 6),
        ({"decoder_sparse_step": 2}, 3),
        ({"mlp_only_layers": [0, 5]}, 4),
        ({"first_k_dense_replace": 1}, 5),
        ({"moe_layers": [1, 3]}, 2),
    ):
        assert experts_of({**base, **keys}, 6, 8) == Experts(4, 2, 8, 0, layers)
    for dense in ({}, {"num_experts": 1, "num_experts_per_tok": 1}, {**base, "enable_moe_block": False}):
        assert experts_of(dense, 6, 8) is None


def test_only_active_parameters_take_time_and_all_take_memory() -> None:
    widths: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "vocab_size": 100}
    dense = shape_of_config({**widths, "intermediate_size": 1024}, what="x")
    mixed = shape_of_config(
        {**widths, "intermediate_size": 512, "num_local_experts": 8, "num_experts_per_tok": 2}, what="x"
    )
    assert mixed.inner == dense.inner
    assert mixed.num_active == dense.num_parameters + 2 * 256 * 8, "the same matrices, and two routers"
    rounding = gamma(16, torch.float64)  # a bound is a product and quotient of fewer than 16 factors
    settings = Settings.model_validate({"model": {"base": "m"}, "data": {"train": "d"}})
    work = Workload(settings, Machine("cuda", is_bf16=True), Lengths(8, 8, 8))
    for dense_bound, mixed_bound in zip(
        bounds(dense, work, GPUS["h200"]), bounds(mixed, work, GPUS["h200"]), strict=True
    ):
        expected = dense_bound.seconds["compute"] * mixed.num_active / dense.num_parameters
        assert mixed_bound.seconds["compute"] == pytest.approx(expected, rel=rounding)
        assert mixed_bound.seconds["memory"] > dense_bound.seconds["memory"]
    for dense_step, mixed_step in zip(estimate_steps(dense, work), estimate_steps(mixed, work), strict=True):
        assert mixed_step.device["weights"] > 2 * dense_step.device["weights"]


def test_experts_are_not_quantized() -> None:
    config = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}
    shape = shape_of_config({**config, "intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2}, what="x")
    lora = Settings.model_validate(
        {
            "model": {"base": "m"},
            "data": {"train": "d"},
            "lora": {"r": 4, "quantize": "nf4", "export": "adapter"},
        }
    ).lora
    assert shape.experts is not None
    routed = 4 * shape.experts.num_routed(shape.hidden)
    assert routed < frozen_bytes(shape, lora) < 4 * shape.num_parameters
    assert math.isclose(routed, 4 * 2 * 8 * 3 * 64 * 64)
