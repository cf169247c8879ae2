"""Keys and values of the sequences being answered, a row each, and the attention that reads and writes them.

R rows, T tokens of a step, H heads, K of keys and values, D head size, C columns. A row's columns are its sequence's
positions from 0 on, so nothing is padded on the left, a sequence that ends leaves a row free, and another may take it.
In a step the first rows ask with one token each; behind them whole prompts enter the rows that follow.
Everything but attention works on tokens one by one and does not notice: `transformers` hands what a step is about to
every layer of every architecture as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spin_components.algorithm.packing import packed_attention

SLOTS = "spin_slots"
"""Name of the attention implementation."""

_COLUMNS_AT_A_TIME = 64
_TOLERANCE = 1e-4


class Slots:
    """Room for the keys and values of R sequences in every layer, growing with the longest."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._num_rows, self._device = num_rows, device
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # each (R, K, C, D)
        self._columns = 0
        self._seen = 0
        self._positions = torch.empty(0, dtype=torch.int64)  # where each asking row writes
        self._prompts: list[int] = []  # lengths of those that enter
        self._lengths = torch.empty(0)
        self._masks: dict[int | None, Tensor] = {}

    def predict(
        self, model: Any, tokens: Sequence[int], positions: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Logits of what follows in each row; (R, V) float32.

        Args:
            model: one with slot attention.
            tokens: the newest of rows 0, 1, …, not seen by the model yet.
            positions: theirs, each the number of tokens that its row holds.
            prompts: those that enter the rows behind.
        """
        lengths = [len(prompt) for prompt in prompts]
        self._begin(positions, lengths)
        last = torch.tensor([1] * len(tokens) + lengths).cumsum(0) - 1
        ids = [*tokens, *(token for prompt in prompts for token in prompt)]
        places = [*positions, *(place for length in lengths for place in range(length))]
        logits = model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([places], device=self._device),
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
        self._seen = max(positions, default=-1) + 1
        needed = max([self._seen, *prompts])
        if needed > self._columns:
            self._columns = -(-needed // _COLUMNS_AT_A_TIME) * _COLUMNS_AT_A_TIME

    def move(self, source: int, target: int, length: int) -> None:
        """Give a row's first columns to another row."""
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
        """Keep this step's keys and values of a layer, and answer its queries; (1, H, T, D) to (1, T, H, D)."""
        if torch.is_autocast_enabled(query.device.type):  # kept as products take them, not cast in every step
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        keys, values = self._layer(module.layer_idx, key, value)  # type: ignore[arg-type]
        asking = len(self._positions)
        parts = []
        if asking:
            rows = torch.arange(asking, device=self._device)
            keys[rows, :, self._positions] = key[0, :, :asking].transpose(0, 1)
            values[rows, :, self._positions] = value[0, :, :asking].transpose(0, 1)
            seen = keys[:asking, :, : self._seen], values[:asking, :, : self._seen]
            parts.append(self._decode(query[0, :, :asking], *seen, scaling=scaling, window=window, softcap=softcap))
        if self._prompts:
            first = asking
            for row, length in enumerate(self._prompts, start=asking):
                keys[row, :, :length] = key[0, :, first : first + length]
                values[row, :, :length] = value[0, :, first : first + length]
                first += length
            new_query, new_key, new_value = (tensor[:, :, asking:] for tensor in (query, key, value))
            found, _ = packed_attention(
                module, new_query, new_key, new_value, self._lengths, scaling, sliding_window=window, softcap=softcap
            )
            parts.append(found)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's room, with as many columns as this step needs; what is not written yet must be finite."""
        room = self._layers.get(index)
        if room is None or room[0].shape[2] < self._columns:
            shapes = [(self._num_rows, new.shape[1], self._columns, new.shape[3]) for new in (key, value)]
            keys, values = key.new_zeros(shapes[0]), value.new_zeros(shapes[1])
            if room is not None:
                keys[:, :, : room[0].shape[2]] = room[0]
                values[:, :, : room[1].shape[2]] = room[1]
            self._layers[index] = room = keys, values
        return room

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
        """One token a row over its own columns; (H, R, D) over (R, K, C, D) to (1, R, H, D).

        Heads that share keys ask together, so that keys and values are read once and copied never.
        """
        heads, rows, size = query.shape
        grouped = query.transpose(0, 1).reshape(rows, keys.shape[1], -1, size)  # (R, K, H / K, D)
        scores = (grouped * (size**-0.5 if scaling is None else scaling)) @ keys.transpose(2, 3)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        weights = torch.softmax(scores + self._mask(window), dim=-1, dtype=torch.float32)
        return (weights.to(values.dtype) @ values).view(1, rows, heads, -1)

    def _mask(self, window: int | None) -> Tensor:
        """0 where a row may look, minus infinity elsewhere; (R, 1, 1, C), the same in all layers of one window."""
        if window not in self._masks:
            columns = torch.arange(self._seen, device=self._device)
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
    """Attention of a step through `Slots`; an attention function of `transformers`.

    Args:
        module: the layer's attention.
        query: (1, H, T, D).
        key: (1, K, T, D), as is value.
        value: see key.
        attention_mask: not looked at; it only keeps the model from making one.
        scaling: of the scores; 1 / sqrt(D) by default.
        dropout: must be 0.
        sliding_window: a token sees so many, itself among them.
        softcap: scores are kept within by tanh.
        slots: where the sequences are.
        **kwargs: what else an architecture hands over; see Raises.

    Returns: (1, T, H, D), and no weights.

    Raises:
        NotImplementedError: the architecture wants something that is not done here.
    """
    if slots is None:
        raise NotImplementedError(f"{type(module).__name__} is not told its slots")
    if dropout or any(kwargs.get(name) is not None for name in ("s_aux", "position_bias", "head_mask")):
        raise NotImplementedError(f"{type(module).__name__} wants more than slot attention does")
    found = slots.attend(module, query, key, value, scaling=scaling, window=sliding_window, softcap=softcap)
    return found, None


def give_slot_attention(model: Any, device: torch.device) -> str:
    """Have a model compute through `Slots`, if it then predicts a few sequences as it did before.

    Returns: empty, or why it is left as it was.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(SLOTS, slot_attention)
    before = model.config._attn_implementation
    reason = ""
    with torch.no_grad():
        try:
            examples = _examples(model.get_input_embeddings().num_embeddings)
            plain = [model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0] for ids in examples]
            model.set_attn_implementation(SLOTS)
            errors = [
                float((found - plain[number][place]).abs().max() / plain[number].abs().max())
                for number, place, found in _stepwise(model, examples, device)
            ]
            if not max(errors) < _TOLERANCE:
                reason = f"its predictions differ by {max(errors):.1e}"
        except (NotImplementedError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            reason = str(error)
    if reason:
        model.set_attn_implementation(before)
    return reason


def _examples(vocabulary: int) -> list[list[int]]:
    """Sequences of unlike lengths, with whatever tokens; few, because every generation begins with them."""
    tokens = [7 + place * 31 % max(vocabulary - 7, 1) for place in range(22)]
    return [tokens[:6], tokens[6:10], tokens[10:]]


def _stepwise(model: Any, examples: list[list[int]], device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
    """Which example, after which of its tokens, and what is predicted to follow.

    Two enter, a third when they have gone on, and that then takes the first one's row.
    """
    slots, (a, b, c) = Slots(3, device), examples
    logits = slots.predict(model, [], [], [a[:-2], b[:-2]])
    yield from ((0, -3, logits[0]), (1, -3, logits[1]))
    logits = slots.predict(model, [a[-2], b[-2]], [len(a) - 2, len(b) - 2], [c[:-2]])
    yield from ((0, -2, logits[0]), (1, -2, logits[1]), (2, -3, logits[2]))
    slots.move(2, 0, len(c) - 2)
    logits = slots.predict(model, [c[-2], b[-1]], [len(c) - 2, len(b) - 1], [])
    yield from ((2, -2, logits[0]), (1, -1, logits[1]))
