"""KV cache for continuous batching, with a row for each sequence, and the attention that reads and writes it.

Shapes: R rows, T tokens of a step, H query heads, K key and value heads, D head size, C columns. The columns of a row
are the positions of its sequence from 0 on, so there is no left padding, and a finished sequence's row can be reused.
A step packs one new token of each active row, rows 0, 1, …, followed by whole prompts that enter the next rows. Only
attention needs to know this layout; `transformers` passes the cache unchanged to every layer of every architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spin_components.algorithm.packing import packed_attention
from spin_components.model.windows import short_windows

SLOTS = "spin_slots"
"""Name under which the attention implementation is registered in `transformers`."""

_COLUMN_INCREMENT = 64
_TOLERANCE = 1e-4


class Slots:
    """Keys and values of R sequences in every layer; the cache grows with the longest sequence."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._num_rows, self._device = num_rows, device
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # each (R, K, C, D)
        self._num_columns = 0
        self._num_read = 0  # columns that the active rows read
        self._positions = torch.empty(0, dtype=torch.int64)  # column that each active row writes
        self._prompts: list[int] = []  # lengths of the entering prompts
        self._lengths = torch.empty(0)
        self._masks: dict[int | None, Tensor] = {}

    def predict(
        self, model: Any, tokens: Sequence[int], positions: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Logits of the next token of each row; (active rows + prompts, V) float32.

        Args:
            model: with slot attention.
            tokens: newest token of each active row, rows 0, 1, …, not in the cache yet.
            positions: position of each, which is the number of tokens of its row in the cache.
            prompts: token ids of prompts that enter the next rows.
        """
        lengths = [len(prompt) for prompt in prompts]
        self._begin(positions, lengths)
        last = torch.tensor([1] * len(tokens) + lengths).cumsum(0) - 1
        ids = [*tokens, *(token for prompt in prompts for token in prompt)]
        position_ids = [*positions, *(position for length in lengths for position in range(length))]
        logits = model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([position_ids], device=self._device),
            attention_mask=self._lengths,
            logits_to_keep=last.to(self._device),
            use_cache=False,
            slots=self,
        ).logits
        return logits[0].float()  # type: ignore[no-any-return]

    def _begin(self, positions: Sequence[int], prompts: list[int]) -> None:
        self._prompts, self._masks = prompts, {}
        self._positions = torch.tensor(positions, dtype=torch.int64, device=self._device)
        self._lengths = torch.tensor([[length, 0] for length in prompts], dtype=torch.int64).view(1, 1, -1, 2)
        self._num_read = max(positions, default=-1) + 1
        needed = max([self._num_read, *prompts])
        if needed > self._num_columns:
            self._num_columns = -(-needed // _COLUMN_INCREMENT) * _COLUMN_INCREMENT

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of a row to another row."""
        for keys, values in self._layers.values():
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Store a layer's keys and values of this step, and compute its attention; (1, H, T, D) to (1, T, H, D)."""
        if torch.is_autocast_enabled(query.device.type):  # cache in the dtype of matrix products, not cast every step
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        keys, values = self._layer(module.layer_idx, key, value)  # type: ignore[arg-type]
        num_active = len(self._positions)
        parts = []
        if num_active:
            rows = torch.arange(num_active, device=self._device)
            keys[rows, :, self._positions] = key[0, :, :num_active].transpose(0, 1)
            values[rows, :, self._positions] = value[0, :, :num_active].transpose(0, 1)
            cached = keys[:num_active, :, : self._num_read], values[:num_active, :, : self._num_read]
            active_query = query[0, :, :num_active]
            parts.append(self._decode(active_query, *cached, scaling=scaling, window=window, softcap=softcap))
        if self._prompts:
            first = num_active
            for row, length in enumerate(self._prompts, start=num_active):
                keys[row, :, :length] = key[0, :, first : first + length]
                values[row, :, :length] = value[0, :, first : first + length]
                first += length
            new_query, new_key, new_value = (tensor[:, :, num_active:] for tensor in (query, key, value))
            output, _ = packed_attention(
                module, new_query, new_key, new_value, self._lengths, scaling, sliding_window=window, softcap=softcap
            )
            parts.append(output)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, grown to the columns that this step needs.

        Unwritten columns are 0: they are masked, but must be finite.
        """
        cache = self._layers.get(index)
        if cache is None or cache[0].shape[2] < self._num_columns:
            shapes = [(self._num_rows, new.shape[1], self._num_columns, new.shape[3]) for new in (key, value)]
            keys, values = key.new_zeros(shapes[0]), value.new_zeros(shapes[1])
            if cache is not None:
                keys[:, :, : cache[0].shape[2]] = cache[0]
                values[:, :, : cache[1].shape[2]] = cache[1]
            self._layers[index] = cache = keys, values
        return cache

    def _decode(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attention of one token of each row over the row's columns; (H, R, D) over (R, K, C, D) to (1, R, H, D).

        Query heads that share keys and values are grouped, so that these are not repeated in memory.
        """
        heads, rows, size = query.shape
        grouped = query.transpose(0, 1).reshape(rows, keys.shape[1], -1, size)  # (R, K, H / K, D)
        scores = (grouped * (size**-0.5 if scaling is None else scaling)) @ keys.transpose(2, 3)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        weights = torch.softmax(scores + self._mask(window), dim=-1, dtype=torch.float32)
        return (weights.to(values.dtype) @ values).view(1, rows, heads, -1)

    def _mask(self, window: int | None) -> Tensor:
        """Additive mask, 0 or -inf; (R, 1, 1, C), cached for all layers with the same window."""
        if window not in self._masks:
            columns = torch.arange(self._num_read, device=self._device)
            last = self._positions[:, None]
            hidden = columns > last if window is None else (columns > last) | (columns <= last - window)
            mask = torch.zeros(hidden.shape, device=self._device).masked_fill_(hidden, float("-inf"))
            self._masks[window] = mask[:, None, None]
        return self._masks[window]


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    slots: Slots | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the cached sequences of `Slots`, as an attention function of `transformers`.

    Args:
        module: attention module of the layer.
        query: (1, H, T, D).
        key: (1, K, T, D).
        value: as key.
        attention_mask: ignored; it only keeps the model from creating one.
        scaling: factor of the scores; 1 / sqrt(D) by default.
        dropout: must be 0.
        sliding_window: number of tokens that a token attends to, itself included.
        softcap: bound of the scores, softcap * tanh(scores / softcap).
        slots: the cache of the step.
        **kwargs: further arguments of an architecture; see Raises.

    Returns: (1, T, H, D), and None for the attention weights.

    Raises:
        NotImplementedError: the architecture does not pass `slots` on, or needs dropout, attention sinks, a position
            bias or a head mask.
    """
    if slots is None:
        raise NotImplementedError(f"{type(module).__name__} does not receive the argument slots")
    if dropout or any(kwargs.get(name) is not None for name in ("s_aux", "position_bias", "head_mask")):
        raise NotImplementedError(f"{type(module).__name__} needs an option that slot attention does not support")
    output = slots.attend(module, query, key, value, scaling=scaling, window=sliding_window, softcap=softcap)
    return output, None


def enable_slot_attention(model: Any, device: torch.device) -> str:
    """Switch a model to slot attention, if its predictions for three small example sequences stay the same.

    Returns: an empty string, or why the model keeps its own attention.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(SLOTS, slot_attention)
    before = model.config._attn_implementation
    reason = ""
    with torch.no_grad(), short_windows(model):
        try:
            examples = _examples(model.get_input_embeddings().num_embeddings)
            expected = [
                model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0] for ids in examples
            ]
            model.set_attn_implementation(SLOTS)
            if model.config._attn_implementation != SLOTS:
                raise NotImplementedError("its attention cannot be replaced")
            errors = [
                float((logits - expected[number][index]).abs().max() / expected[number].abs().max())
                for number, index, logits in _predict_examples(model, examples, device)
            ]
            if not max(errors) < _TOLERANCE:
                reason = f"its predictions differ by {max(errors):.1e}"
        except (NotImplementedError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            reason = str(error)
    if reason:
        model.set_attn_implementation(before)
    return reason


def _examples(vocabulary: int) -> list[list[int]]:
    """Three sequences of different lengths with arbitrary tokens; small, because every engine's start runs them."""
    tokens = [7 + index * 31 % max(vocabulary - 7, 1) for index in range(22)]
    return [tokens[:6], tokens[6:10], tokens[10:]]


def _predict_examples(model: Any, examples: list[list[int]], device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (number of the example, index of one of its tokens, logits of the token that follows) over three steps.

    Examples a and b enter in the first step, c in the second; c then moves into a's row.
    """
    slots, (a, b, c) = Slots(3, device), examples
    logits = slots.predict(model, [], [], [a[:-2], b[:-2]])
    yield from ((0, -3, logits[0]), (1, -3, logits[1]))
    logits = slots.predict(model, [a[-2], b[-2]], [len(a) - 2, len(b) - 2], [c[:-2]])
    yield from ((0, -2, logits[0]), (1, -2, logits[1]), (2, -3, logits[2]))
    slots.move(2, 0, len(c) - 2)
    logits = slots.predict(model, [c[-2], b[-1]], [len(c) - 2, len(b) - 1], [])
    yield from ((2, -2, logits[0]), (1, -1, logits[1]))
