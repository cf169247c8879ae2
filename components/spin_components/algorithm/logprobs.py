"""Log-probabilities of answers under a model, for reference, policy and validation.

No other module computes them. Shapes: N sequences, P tokens of the longest prompt, A of the longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spin_components.algorithm.head import answer_head
from spin_components.algorithm.packing import PACKED, PackedBatch, Prompted, pack


class PromptAnswer(NamedTuple):
    """A prompt and one answer to it, as token ids; neither is empty."""

    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


class AlignedBatch(NamedTuple):
    """Padded sequences, a row each: prompts padded on the left, answers on the right.

    All answers begin at the same column, so that the log-probabilities of answers are one slice.
    """

    input_ids: Tensor  # (N, P + A) int64
    attention_mask: Tensor  # (N, P + A) int64, 1 on tokens
    position_ids: Tensor  # (N, P + A) int64, 0 at each row's first token
    answer_ids: Tensor  # (N, A) int64
    answer_mask: Tensor  # (N, A) bool


def align(sequences: Sequence[PromptAnswer], device: torch.device | str = "cpu") -> AlignedBatch:
    """Pad N sequences to an `AlignedBatch`; padding has id 0 and is masked wherever it is used."""
    longest_prompt = max(len(sequence.prompt_ids) for sequence in sequences)
    longest_answer = max(len(sequence.answer_ids) for sequence in sequences)
    shape = (len(sequences), longest_prompt + longest_answer)
    input_ids = torch.zeros(shape, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for row, (prompt_ids, answer_ids) in enumerate(sequences):
        first, last = longest_prompt - len(prompt_ids), longest_prompt + len(answer_ids)
        input_ids[row, first:last] = torch.tensor([*prompt_ids, *answer_ids])
        attention_mask[row, first:last] = 1
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    batch = AlignedBatch(
        input_ids,
        attention_mask,
        position_ids,
        input_ids[:, longest_prompt:],
        attention_mask[:, longest_prompt:].bool(),
    )
    return AlignedBatch(*(tensor.to(device) for tensor in batch))


def token_logprobs(model: nn.Module, batch: AlignedBatch) -> Tensor:
    """log pi(token | preceding tokens) in nats of every answer token; (N, A) float32, 0 at padding."""
    rows, columns = batch.answer_mask.nonzero(as_tuple=True)
    width = batch.input_ids.shape[1]
    preceding = rows * width + (width - batch.answer_ids.shape[1] - 1) + columns
    logprobs = _forward(
        model,
        batch.input_ids,
        batch.attention_mask,
        batch.position_ids,
        positions=preceding,
        targets=batch.answer_ids[rows, columns],
    )
    zeros = torch.zeros(batch.answer_ids.shape, device=logprobs.device)
    return zeros.index_put((rows, columns), logprobs)


def _forward(
    model: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *, positions: Tensor, targets: Tensor
) -> Tensor:
    answer_head(getattr(model, "module", model))
    return model(  # type: ignore[no-any-return]
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=False,
        positions=positions,
        targets=targets,
    )


def answer_logprobs(model: nn.Module, groups: Sequence[Prompted], device: torch.device | str = "cpu") -> Tensor:
    """log pi(answer | prompt) in nats, summed over answer tokens.

    One forward pass: ZeRO-3 gathers all weights in each, and needs as many passes on every rank.

    Returns: (number of answers in all groups,) float32, in the order of the groups.
    """
    if is_packed(model):
        return _packed_logprobs(model, pack(groups, device))
    sequences = [PromptAnswer(prompt, answer) for prompt, answers in groups for answer in answers]
    return token_logprobs(model, align(sequences, device)).sum(-1)


def is_packed(model: nn.Module) -> bool:
    """Whether the model uses packed attention, see `packing`."""
    inner: Any = getattr(model, "module", model)
    return str(inner.config._attn_implementation).startswith(PACKED)


def _packed_logprobs(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Sums of a packed batch, one forward pass: (number of answers,) float32."""
    logprobs = _forward(
        model,
        batch.input_ids,
        batch.lengths,
        batch.position_ids,
        positions=batch.positions,
        targets=batch.targets,
    )
    sums = torch.zeros(int(batch.answers[-1]) + 1, device=logprobs.device)
    return sums.index_add(0, batch.answers, logprobs)
