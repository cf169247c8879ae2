"""Packed attention with torch's flex attention: soft-capping, sinks and every head size, in float32 and bf16.

On a GPU it is compiled once to a kernel that computes only the blocks of `segments.key_blocks`. On a CPU torch computes
all scores, and no gradients.

Shapes: T tokens, H query heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from spin_components.algorithm.attention.segments import key_blocks, token_parts
from spin_components.algorithm.attention.varlen import in_compute_dtype
from spin_components.algorithm.packing import AttentionOptions

BLOCK_SIZE = 128
"""Tokens in a block of queries or keys; the default of flex attention."""


FlexOp = Callable[..., Any]
"""A function with the arguments of `torch.nn.attention.flex_attention.flex_attention`."""


@dataclass(frozen=True)
class FlexKernel:
    """A `packing.Kernel` over flex attention.

    Attributes:
        op: the operation; None for torch's, compiled on a GPU.
    """

    op: FlexOp | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, options: AttentionOptions) -> Tensor:
        scale = query.shape[-1] ** -0.5 if options.scaling is None else options.scaling
        query, key, value = in_compute_dtype(query, key, value)
        arguments: dict[str, Any] = {
            "score_mod": None if options.softcap is None else _bounded(options.softcap),
            "block_mask": _block_mask(tuple(map(tuple, lengths.tolist())), options.window, query.device),
            "scale": scale,
            "enable_gqa": query.shape[1] != key.shape[1],
        }
        attend = self.op or (_compiled() if query.is_cuda else flex_attention)
        if options.sinks is None:
            output: Tensor = attend(query, key, value, **arguments)
            return output
        output, aux = attend(query, key, value, **arguments, return_aux=AuxRequest(lse=True))
        # a further term in the denominator: softmax over scores and sink = softmax over scores * sigmoid(lse - sink)
        share = torch.sigmoid(aux.lse - options.sinks.to(aux.lse.dtype)[None, :, None])
        return output * share[..., None].to(output.dtype)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


@cache
def _bounded(softcap: float) -> Callable[..., Tensor]:
    """Soft-capping of scores; the same function for the same bound, so that it is compiled once."""

    def bounded(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap

    return bounded


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # a policy may be trained on a batch that was scored
def _block_mask(lengths: tuple[tuple[int, ...], ...], window: int | None, device: torch.device) -> BlockMask:
    """The mask of a batch: the same in all layers with the same window."""
    part, prompt, position = (torch.tensor(each, device=device) for each in token_parts(lengths))

    def is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_own = (part[key] == part[query]) | (part[key] == prompt[query])
        distance = position[query] - position[key]
        return is_own & (distance >= 0) if window is None else is_own & (distance >= 0) & (distance < window)

    blocks = key_blocks(lengths, window, BLOCK_SIZE)
    padded = [[*each, *[0] * (len(blocks) - len(each))] for each in blocks]
    return BlockMask.from_kv_blocks(
        torch.tensor([[list(map(len, blocks))]], dtype=torch.int32, device=device),
        torch.tensor([[padded]], dtype=torch.int32, device=device),
        BLOCK_SIZE=BLOCK_SIZE,
        mask_mod=is_seen,
        seq_lengths=(len(part), len(part)),
    )
