"""Activation memory: bytes that a forward pass saves for its backward pass, and its temporary tensors.

Widths as in `ModelShape`: h hidden, f inner, a queries, k keys, H heads, V vocabulary, L layers. Counted tensor by
tensor on `transformers`' modules, following Korthikanti et al. (arXiv:2205.05198, section 4), whose formula is for GPT
blocks in 16 bits:

- a norm saves its input and the normalised input in float32, as the residual stream is float32 under autocast too;
- projections save their input: one tensor without a cast; under autocast, which casts weights once but activations at
  every use, one bf16 copy for each of the five;
- attention saves queries, keys and values repeated to all heads, its output, and the transposed output; packed, the
  keys and values of a prompt a second time for the second answer;
- an MLP saves gate, its activation, up and their product; without a gate, the first product and its activation;
- experts save the hidden state, their output and its weighted output once for each expert that a token goes through;
- parallel residual streams (AltUp) save their prediction, its parts and its correction;
- on a CPU a recurrent layer saves the state after each token, and four tensors that it is made from.
"""

from __future__ import annotations

from dataclasses import dataclass

from spin_components.memory.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Batch:
    """Size of a forward pass.

    Attributes:
        tokens: number of tokens, including padding.
        positions: number of tokens whose logits are computed.
        repeated: number of tokens whose keys and values attention copies a second time.
        squares: sum over sequences of their squared length, where attention saves its weights (padded, on a
            CPU); else 0.
    """

    tokens: int
    positions: int
    repeated: int = 0
    squares: int = 0


def block_bytes(shape: ModelShape, batch: Batch, *, is_bf16: bool) -> int:
    """Bytes that one transformer block saves for its backward pass."""
    h, f, a = shape.hidden, shape.inner, shape.queries
    num_inner = 4 if shape.is_gated else 2
    if is_bf16:
        per_token = 2 * (4 * h + 4 * h) + (5 if shape.is_gated else 4) * 2 * h + 2 * 5 * a + 2 * num_inner * f
    else:
        per_token = 4 * (6 * h + 5 * a + num_inner * f)
    number = 2 if is_bf16 else 4
    if shape.experts:
        per_token += number * 3 * shape.experts.active * h
    if shape.streams > 1:
        per_token += 4 * 4 * shape.streams * h
    if shape.state and batch.squares:
        per_token += 4 * f * (4 + 5 * shape.state)
    weights = (4 + (2 if is_bf16 else 0)) * shape.num_heads * batch.squares
    return batch.tokens * per_token + batch.repeated * 2 * a * number + weights


def boundary_bytes(shape: ModelShape, batch: Batch) -> int:
    """Bytes that one block saves under gradient checkpointing: its float32 input."""
    return 4 * shape.hidden * batch.tokens


def working_bytes(shape: ModelShape, batch: Batch, *, is_bf16: bool, backward: bool) -> int:
    """Largest sum of temporary tensors within one block, in bytes.

    In the forward pass these are gate, activation, up and product of the MLP, or the attention scores before and after
    the softmax; in the backward pass, gradients of the same number of tensors.
    """
    number = 2 if is_bf16 else 4
    inner = (4 if shape.is_gated else 2) * shape.inner * number * batch.tokens
    scores = 2 * 4 * shape.num_heads * batch.squares
    residual = 4 * 4 * shape.hidden * batch.tokens
    return max(inner, scores) + residual + (4 * shape.hidden * batch.tokens if backward else 0)


def logit_bytes(shape: ModelShape, positions: int, *, is_bf16: bool, backward: bool) -> int:
    """Bytes of the logits of some positions and of the tensors derived from them.

    In the forward pass, logits and log-softmax in float32, and under autocast the bf16 logits; in the backward pass,
    the log-softmax and two gradients of its size.
    """
    forward_bytes = 8 + (2 if is_bf16 else 0)
    backward_bytes = 12 + (2 if is_bf16 else 0)
    return positions * shape.vocabulary * (backward_bytes if backward else forward_bytes)
