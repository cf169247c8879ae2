"""Bytes that a forward pass keeps for its backward pass, and what it needs on the way.

Widths as in `ModelShape`: h hidden, f inner, a queries, k keys, H heads, V vocabulary, L layers. Counted on
`transformers`' modules, tensor by tensor, after the manner of Korthikanti et al. (arXiv:2205.05198, section 4), whose
formula is for GPT's blocks in 16 bits:

- a norm keeps its input and the normalised input, in float32: the residual stream is float32 under autocast too;
- projections keep their input: one tensor where nothing is cast, one bf16 copy for each of the five under autocast,
  which copies weights once but activations at every use;
- attention keeps queries, keys and values repeated to all heads, its output, and the output laid out anew; packed, the
  keys and values of a prompt a second time for the second answer;
- an MLP keeps gate, its activation, up and their product; without a gate the first product and its activation.
"""

from __future__ import annotations

from dataclasses import dataclass

from spin_components.memory.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Batch:
    """A forward pass.

    Attributes:
        tokens: that go through the blocks, padding among them.
        positions: whose logits are computed.
        repeated: tokens whose keys and values attention copies once more.
        squares: sum over sequences of the square of their length, where attention keeps its weights; else 0.
    """

    tokens: int
    positions: int
    repeated: int = 0
    squares: int = 0


def block_bytes(shape: ModelShape, batch: Batch, *, is_bf16: bool) -> int:
    """What one transformer block keeps for its backward pass."""
    h, f, a = shape.hidden, shape.inner, shape.queries
    num_inner = 4 if shape.is_gated else 2
    if is_bf16:
        per_token = 2 * (4 * h + 4 * h) + (5 if shape.is_gated else 4) * 2 * h + 2 * 5 * a + 2 * num_inner * f
    else:
        per_token = 4 * (6 * h + 5 * a + num_inner * f)
    number = 2 if is_bf16 else 4
    weights = (4 + (2 if is_bf16 else 0)) * shape.num_heads * batch.squares
    return batch.tokens * per_token + batch.repeated * 2 * a * number + weights


def boundary_bytes(shape: ModelShape, batch: Batch) -> int:
    """What one block keeps under gradient checkpointing: its float32 input."""
    return 4 * shape.hidden * batch.tokens


def working_bytes(shape: ModelShape, batch: Batch, *, is_bf16: bool, backward: bool) -> int:
    """What comes and goes within one block: the widest tensors of a moment.

    Forward, an MLP holds gate, activation, up and product, or attention its scores before and after softmax; backward,
    gradients of as many of them.
    """
    number = 2 if is_bf16 else 4
    inner = (4 if shape.is_gated else 2) * shape.inner * number * batch.tokens
    scores = 2 * 4 * shape.num_heads * batch.squares
    residual = 4 * 4 * shape.hidden * batch.tokens
    return max(inner, scores) + residual + (4 * shape.hidden * batch.tokens if backward else 0)


def logit_bytes(shape: ModelShape, positions: int, *, is_bf16: bool, backward: bool) -> int:
    """Logits of so many positions and what is made of them.

    Forward, logits and their log-softmax, both float32, beside the product's own bf16 under autocast; backward, the
    log-softmax and two gradients of its size.
    """
    forward_bytes = 8 + (2 if is_bf16 else 0)
    backward_bytes = 12 + (2 if is_bf16 else 0)
    return positions * shape.vocabulary * (backward_bytes if backward else forward_bytes)
