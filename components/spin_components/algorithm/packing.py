"""Prompts and answers laid end to end, without padding, each prompt computed once for all of its answers.

T tokens in all, H heads, D head size. A group is a prompt and its answers: [prompt, answer 0, answer 1, …]. Positions
of every answer go on from its prompt's, so an answer sees its prompt and itself, as if it stood alone behind it.
Everything but attention works on tokens one by one and does not notice; attention is told the groups' lengths in the
place of a mask, which `transformers` hands to every layer of every architecture as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

PACKED = "spin_packed"
"""Name of the attention implementation."""


class Prompted(NamedTuple):
    """A prompt and the answers to it, as token ids; each has at least one."""

    prompt_ids: Sequence[int]
    answers: Sequence[Sequence[int]]


class PackedBatch(NamedTuple):
    """G groups end to end.

    Attributes:
        lengths: of each group's prompt and answers, 0 where a group has fewer answers; on the CPU.
        positions: whose logits predict the answers' tokens, answer by answer.
        targets: those tokens.
        answers: which answer, of all groups, each belongs to.
    """

    input_ids: Tensor  # (1, T) int64
    position_ids: Tensor  # (1, T) int64
    lengths: Tensor  # (1, 1, G, 1 + answers) int64
    positions: Tensor  # (L,) int64
    targets: Tensor  # (L,) int64
    answers: Tensor  # (L,) int64


def pack(groups: Sequence[Prompted], device: torch.device | str = "cpu") -> PackedBatch:
    """Lay out groups one after the other."""
    most = max(len(group.answers) for group in groups)
    input_ids: list[int] = []
    position_ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    answers: list[int] = []
    lengths = [[len(g.prompt_ids), *map(len, g.answers), *[0] * (most - len(g.answers))] for g in groups]
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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each group; an attention function of `transformers`.

    Args:
        module: the layer's attention.
        query: (1, H, T, D).
        key: (1, H or fewer, T, D), as is value.
        value: see key.
        attention_mask: `PackedBatch.lengths`.
        scaling: of the scores; 1 / sqrt(D) by default.
        dropout: must be 0.
        sliding_window: a token sees so many, itself among them.
        softcap: scores are kept within by tanh.
        **kwargs: what else an architecture hands over; see Raises.

    Returns: (1, T, H, D), and no weights.

    Raises:
        NotImplementedError: the architecture wants something that is not done here.
    """
    if attention_mask is None or attention_mask.ndim != 4 or attention_mask.is_floating_point():
        raise NotImplementedError("packed attention is not told the groups' lengths")
    if dropout or any(kwargs.get(name) is not None for name in ("s_aux", "position_bias", "head_mask")):
        raise NotImplementedError(f"{type(module).__name__} wants more than packed attention does")
    if query.shape[1] != key.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    lengths = attention_mask[0, 0].tolist()
    # split, not slices: the gradient of a slice is as large as all of the batch, that of a split is one concatenation
    sizes = [size for prompt, first, *others in lengths for size in (prompt + first, *others) if size]
    queries, keys, values = (iter(torch.split(tensor, sizes, dim=2)) for tensor in (query, key, value))
    attend = partial(_attend, scaling=scaling, window=sliding_window, softcap=softcap)
    outputs = []
    for prompt, _, *others in lengths:
        asking, seen, said = next(queries), next(keys), next(values)
        outputs.append(attend(asking, seen, said))
        shared, told = seen[:, :, :prompt], said[:, :, :prompt]
        outputs += [
            attend(next(queries), torch.cat([shared, next(keys)], dim=2), torch.cat([told, next(values)], dim=2))
            for length in others
            if length
        ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of the last tokens of a sequence; (1, H, Q, D) over (1, H, K, D), Q <= K."""
    asking, seen = query.shape[2], key.shape[2]
    if window is not None and window >= seen:
        window = None
    if softcap is None and window is None and asking == seen:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    allowed = torch.ones(asking, seen, dtype=torch.bool, device=query.device).tril(seen - asking)
    if window is not None:
        allowed = allowed.triu(seen - asking - window + 1)
    if softcap is None:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scaling)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~allowed, float("-inf"))
    return functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value
