"""Packed attention with one call of a kernel for sequences of varying length: torch's, or flash-attn's.

Both take queries and keys of different lengths, with the last query of a segment attending to its last key (causal,
aligned at the bottom right; Dao, arXiv:2307.08691, and flash-attn's changes of 2.1). Keys of a prompt are copied for
each of its answers (`index_select`), whose gradient is a sum of as many rows: of two for a pair, in whichever order.

Shapes: T tokens, S segments, H query heads, K key heads, D head size; see `segments`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from spin_components.algorithm.attention.segments import segments
from spin_components.algorithm.packing import AttentionOptions

MAX_HEAD_SIZE = 256
"""Of both kernels."""
_HEAD_MULTIPLE = 8


class VarlenOp(Protocol):
    """Attention of S segments: (queries, H, D) over keys and values (keys, K, D) to (queries, H, D).

    `query_ends` and `key_ends` are (S + 1,) int32; `window` is the number of tokens before its own that a query attends
    to, -1 for all.
    """

    def __call__(
        self,
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
    ) -> Tensor: ...


@dataclass(frozen=True)
class VarlenKernel:
    """A `packing.Kernel` over a `VarlenOp`.

    Attributes:
        op: the operation.
        has_softcap: whether it bounds scores.
    """

    op: VarlenOp
    has_softcap: bool = False

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, options: AttentionOptions) -> Tensor:
        if options.sinks is not None or (options.softcap is not None and not self.has_softcap):
            raise NotImplementedError("this kernel of packed attention supports neither soft-capping nor sinks")
        scale = query.shape[-1] ** -0.5 if options.scaling is None else options.scaling
        size = value.shape[-1]
        rows = (_rows(tensor) for tensor in in_compute_dtype(query, key, value))
        query, key, value = rows  # (T, H or K, D)
        index = _index(tuple(map(tuple, lengths.tolist())), query.device)
        if len(index.key_rows) != len(key):
            key, value = key.index_select(0, index.key_rows), value.index_select(0, index.key_rows)
        output = self.op(
            query,
            key,
            value,
            index.query_ends,
            index.key_ends,
            index.max_queries,
            index.max_keys,
            scale=scale,
            window=-1 if options.window is None else options.window - 1,
            softcap=options.softcap or 0.0,
        )
        return output[..., :size].transpose(0, 1)[None]


def in_compute_dtype(*tensors: Tensor) -> list[Tensor]:
    """The tensors in autocast's dtype, where autocast is on: it casts for torch's own operations only."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


def _rows(tensor: Tensor) -> Tensor:
    """(1, H, T, D) to (T, H, D); zeros fill D up to a multiple of 8, which changes neither scores nor sums."""
    padding = -tensor.shape[-1] % _HEAD_MULTIPLE
    rows = tensor[0].transpose(0, 1)
    return functional.pad(rows, (0, padding)) if padding else rows.contiguous()


class _Index(NamedTuple):
    """`segments.Segments` on a device."""

    key_rows: Tensor
    query_ends: Tensor
    key_ends: Tensor
    max_queries: int
    max_keys: int


@lru_cache(maxsize=2)
def _index(lengths: tuple[tuple[int, ...], ...], device: torch.device) -> _Index:
    """Of a batch: the same in all its layers, and in the second forward pass of gradient checkpointing."""
    found = segments(lengths)
    with torch.inference_mode(False):  # a policy may be trained on a batch that was scored
        return _Index(
            torch.tensor(found.key_rows, device=device),
            torch.tensor(found.query_ends, dtype=torch.int32, device=device),
            torch.tensor(found.key_ends, dtype=torch.int32, device=device),
            found.max_queries,
            found.max_keys,
        )


def torch_varlen() -> VarlenOp:
    """Torch's `varlen_attn`.

    Raises:
        ImportError: this torch has none.
    """
    from torch.nn.attention.varlen import varlen_attn

    def attend(
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
        output: Any = varlen_attn(
            query,
            key,
            value,
            query_ends,
            key_ends,
            max_queries,
            max_keys,
            scale=scale,
            window_size=(window, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output  # type: ignore[no-any-return]

    return attend


def flash_attn_varlen() -> VarlenOp:
    """`flash_attn_varlen_func` of the package flash-attn 2.

    Raises:
        ImportError: it is not installed.
    """
    import flash_attn

    function: Callable[..., Tensor] = flash_attn.flash_attn_varlen_func

    def attend(
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
        return function(
            query,
            key,
            value,
            query_ends,
            key_ends,
            max_queries,
            max_keys,
            softmax_scale=scale,
            causal=True,
            window_size=(window, 0),
            softcap=softcap,
        )

    return attend
