"""Packed batches: prompts and answers concatenated without padding, each prompt computed once for all its answers.

Shapes: T tokens of all groups, H heads, D head size. A group is a prompt and its answers, [prompt, answer 0,
answer 1, …]. The positions of every answer continue those of its prompt, and an answer attends to its prompt and
itself, as in a sequence of its own. Only attention needs to know the groups: their lengths are passed in place of the
attention mask, which `transformers` hands unchanged to every layer of every architecture. Attention itself is one of
several kernels (`attention.kernels`); the one here runs on any device, a call for each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

PACKED = "spin_packed"
"""Name under which the attention implementation is registered in `transformers`; with another kernel, the beginning of
its name."""


class Prompted(NamedTuple):
    """A group: a prompt and the answers to it, as token ids; none is empty."""

    prompt_ids: Sequence[int]
    answers: Sequence[Sequence[int]]


class PackedBatch(NamedTuple):
    """G concatenated groups; L answer tokens in all of them.

    Attributes:
        input_ids: of all groups.
        position_ids: position of each token in its own sequence of prompt and answer.
        lengths: tokens of each group's prompt and answers, 0 where a group has fewer answers; on the CPU.
        positions: index of the token whose logits predict each answer token.
        targets: the answer tokens.
        answers: number, over all groups, of the answer that each target belongs to.
    """

    input_ids: Tensor  # (1, T) int64
    position_ids: Tensor  # (1, T) int64
    lengths: Tensor  # (1, 1, G, 1 + answers) int64
    positions: Tensor  # (L,) int64
    targets: Tensor  # (L,) int64
    answers: Tensor  # (L,) int64


def pack(groups: Sequence[Prompted], device: torch.device | str = "cpu") -> PackedBatch:
    """Concatenate groups to a `PackedBatch`."""
    max_answers = max(len(group.answers) for group in groups)
    input_ids: list[int] = []
    position_ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    answers: list[int] = []
    lengths = [[len(g.prompt_ids), *map(len, g.answers), *[0] * (max_answers - len(g.answers))] for g in groups]
    number = 0
    for prompt_ids, all_answers in groups:
        last = len(input_ids) + len(prompt_ids) - 1  # its logits predict the first token of every answer
        input_ids += prompt_ids
        position_ids += range(len(prompt_ids))
        for answer_ids in all_answers:
            first = len(input_ids)
            input_ids += answer_ids
            position_ids += range(len(prompt_ids), len(prompt_ids) + len(answer_ids))
            positions += [last, *range(first, first + len(answer_ids) - 1)]
            targets += answer_ids
            answers += [number] * len(answer_ids)
            number += 1
    flat = (torch.tensor(values, device=device) for values in (positions, targets, answers))
    return PackedBatch(
        torch.tensor([input_ids], device=device),
        torch.tensor([position_ids], device=device),
        torch.tensor([[lengths]]),
        *flat,
    )


class AttentionOptions(NamedTuple):
    """Options of a layer's attention.

    Attributes:
        scaling: factor of the scores; 1 / sqrt(D) by default.
        window: number of tokens that a token attends to, itself included.
        softcap: bound of the scores, softcap * tanh(scores / softcap).
        sinks: (H,), a further score in the softmax of each head, without a value.
    """

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


class Kernel(Protocol):
    """Causal attention within each group.

    Takes queries (1, H, T, D), keys (1, K, T, D) and values (1, K, T, E), where K divides H; the groups' lengths as
    (G, 1 + answers) on the CPU, see `PackedBatch`; and the layer's options. Returns (1, H, T, E).

    Raises:
        NotImplementedError: the kernel does not support one of the options.
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, options: AttentionOptions
    ) -> Tensor: ...


def attend_by_answer(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, options: AttentionOptions) -> Tensor:
    """The `Kernel` for CPUs: a call of torch's attention for each answer, in any dtype, on any device."""
    if query.shape[1] != key.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    groups = lengths.tolist()
    # split instead of slices: the gradient of a slice has the size of the whole batch, that of a split is one cat
    sizes = [size for prompt, first, *others in groups for size in (prompt + first, *others) if size]
    queries, keys, values = (iter(torch.split(tensor, sizes, dim=2)) for tensor in (query, key, value))
    attend = partial(_attend, options=options)
    outputs = []
    for prompt, _, *others in groups:
        group_query, group_key, group_value = next(queries), next(keys), next(values)  # of prompt and first answer
        outputs.append(attend(group_query, group_key, group_value))
        prompt_key, prompt_value = group_key[:, :, :prompt], group_value[:, :, :prompt]
        outputs += [
            attend(
                next(queries),
                torch.cat([prompt_key, next(keys)], dim=2),
                torch.cat([prompt_value, next(values)], dim=2),
            )
            for length in others
            if length
        ]
    return torch.cat(outputs, dim=2)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    *,
    kernel: Kernel = attend_by_answer,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each group, as an attention function of `transformers`.

    Args:
        module: attention module of the layer.
        query: (1, H, T, D).
        key: (1, H or a divisor of it, T, D).
        value: as key.
        attention_mask: `PackedBatch.lengths`.
        scaling: factor of the scores, see `AttentionOptions`.
        dropout: must be 0.
        sliding_window: `AttentionOptions.window`.
        softcap: bound of the scores.
        s_aux: `AttentionOptions.sinks`.
        kernel: that computes it.
        **kwargs: further arguments of an architecture; see Raises.

    Returns: (1, T, H, D), and None for the attention weights.

    Raises:
        NotImplementedError: the mask holds no lengths, or the architecture needs dropout, a position bias or a head
            mask, or an option that the kernel does not support.
    """
    if attention_mask is None or attention_mask.ndim != 4 or attention_mask.is_floating_point():
        raise NotImplementedError("packed attention needs the groups' lengths as attention_mask")
    if dropout or any(kwargs.get(name) is not None for name in ("position_bias", "head_mask")):
        raise NotImplementedError(f"{type(module).__name__} needs an option that packed attention does not support")
    options = AttentionOptions(scaling, sliding_window, softcap, s_aux)
    output = kernel(query, key, value, attention_mask[0, 0], options)
    return output.transpose(1, 2).contiguous(), None


def _attend(query: Tensor, key: Tensor, value: Tensor, *, options: AttentionOptions) -> Tensor:
    """Causal attention of the last Q tokens of a sequence of K: query (1, H, Q, D), key and value (1, H, K, D)."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    scaling, window, softcap, sinks = options
    if window is not None and window >= num_keys:
        window = None
    is_plain = softcap is None and sinks is None
    if is_plain and window is None and num_queries == num_keys:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    allowed = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
    if window is not None:
        allowed = allowed.triu(num_keys - num_queries - window + 1)
    if is_plain:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scaling)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~allowed, float("-inf"))
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(-1, -1, num_queries, -1)
        scores = torch.cat([scores, column], dim=-1)
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return weights[..., :num_keys] @ value
