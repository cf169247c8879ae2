"""What an adapter changes: how many parameters are trained, and what the weights below it take."""

from __future__ import annotations

from spin_components.lora_settings import LoraSettings
from spin_components.memory.shape import ModelShape

NF4_BYTES = 0.516
"""Of a weight in 4 bits: half a byte, and a block of 64 has one scale of 8 bits, 256 of which share 4 bytes more
(QLoRA, arXiv:2305.14314, section 3)."""


def num_trained(shape: ModelShape, lora: LoraSettings) -> int:
    """Parameters with gradients and optimizer state: all, or r (inputs + outputs) of each adapted matrix.

    Layers that have other names than Llama's are taken for all of them, which is never too little.
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
    """Weights as scoring and training hold them: float32, or blocks' matrices in 4 bits."""
    if not lora.is_quantized:
        return 4 * shape.num_parameters
    blocks = shape.num_layers * shape.num_block
    return int(4 * (shape.num_parameters - blocks) + NF4_BYTES * blocks)
