"""Plain torch in place of the operations that packed attention calls on a GPU, with the same arguments.

On a CPU torch has no kernel for sequences of varying length, and no gradients of flex attention. With these, every line
around the operations runs on a CPU, forwards and backwards, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask


def varlen_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    max_queries: int,
    max_keys: int,
    *,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """`attention.varlen.VarlenOp`: segment by segment, after what the kernels demand of their arguments."""
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
    assert query.shape[-1] == key.shape[-1] == value.shape[-1] and query.shape[-1] % 8 == 0
    spans = list(zip(pairwise(query_ends.tolist()), pairwise(key_ends.tolist()), strict=True))
    assert (spans[-1][0][1], spans[-1][1][1]) == (len(query), len(key))
    assert max_queries == max(end - start for (start, end), _ in spans)
    assert max_keys == max(end - start for _, (start, end) in spans)
    repeats = query.shape[1] // key.shape[1]
    outputs = []
    for (first_query, last_query), (first_key, last_key) in spans:
        num_queries, num_keys = last_query - first_query, last_key - first_key
        keys, values = (each[first_key:last_key].repeat_interleave(repeats, 1) for each in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[first_query:last_query], keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        rows = torch.arange(num_queries)[:, None] + num_keys - num_queries  # aligned at the bottom right
        columns = torch.arange(num_keys)
        hidden = columns > rows
        if window >= 0:
            hidden |= columns < rows - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs)


def flex_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score_mod: Callable[..., Tensor] | None,
    block_mask: BlockMask,
    scale: float,
    enable_gqa: bool,
    return_aux: AuxRequest | None = None,
) -> Any:
    """`flex_attention`: scores where both the blocks and the mask function allow them."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * scale
    none, places = torch.tensor(0), torch.arange(query.shape[2])
    rows, columns = places[:, None], places[None, :]
    if score_mod is not None:
        scores = score_mod(scores, none, none, rows, columns)
    allowed = block_mask.mask_mod(none, none, rows, columns) & _computed(block_mask, len(places))
    scores = scores.masked_fill(~allowed, float("-inf"))
    output = scores.softmax(-1) @ value
    if return_aux is None:
        return output
    return output, AuxOutput(lse=scores.logsumexp(-1))


def _computed(block_mask: BlockMask, num_tokens: int) -> Tensor:
    """Whether a query and a key are in a block that is computed, (T, T)."""
    blocks = block_mask.to_dense()[0, 0].bool()
    size = block_mask.BLOCK_SIZE
    return blocks.repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)[:num_tokens, :num_tokens]
