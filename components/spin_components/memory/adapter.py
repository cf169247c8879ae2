"""Effect of an adapter on memory: the number of trained parameters, and the size of the frozen weights."""

from __future__ import annotations

from spin_components.lora_settings import LoraSettings
from spin_components.memory.shape import ModelShape

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
    return int(4 * (shape.num_parameters - blocks) + NF4_BYTES * blocks)
