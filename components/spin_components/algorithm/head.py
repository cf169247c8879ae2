"""The end of a forward pass: log-probabilities of chosen tokens, without all of their logits in memory.

Logits of T tokens over a vocabulary V are by far the largest tensors of a language model's training: T x V float32
three times over, for themselves, their log-softmax and their gradient. Here they are computed for the tokens that are
asked for and no others, a chunk at a time; where there is more than one chunk, its logits are computed once more on
the way back instead of kept. Every chunk goes through the model's own `forward` behind its body, so whatever an
architecture does to its logits (soft-capping, scaling, a bias) holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from spin_components.algorithm.chunks import logit_chunk

_ATTRIBUTE = "spin_answer_head"


class AnswerHead:
    """A model's `forward` that takes `targets` and returns their log-probabilities.

    Attributes:
        chunk: tokens whose logits are in memory at a time.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._whole: Callable[..., Any] = model.forward
        self._head = model.get_output_embeddings()
        self.chunk = logit_chunk(model.config.get_text_config().vocab_size)

    def forward(self, *args: Any, targets: Tensor | None = None, positions: Tensor | None = None, **kwargs: Any) -> Any:
        """As before where no targets are given; else log-probabilities in nats, (L,) float32.

        Args:
            *args: of the model's own `forward`.
            targets: (L,) int64, tokens whose log-probabilities are asked for; L >= 1.
            positions: (L,) int64, the place in the flattened batch (N x T) whose logits predict each target.
            **kwargs: see args.
        """
        if targets is None or positions is None:
            return self._whole(*args, **kwargs)
        body = getattr(self._model, self._model.base_model_prefix)
        hidden = body(*args, **kwargs).last_hidden_state  # (N, T, H)
        kept = hidden.flatten(0, 1).index_select(0, positions)  # (L, H)
        num = self._num_chunks(len(targets))
        if num == 1:
            return self._logprobs(kept, targets)
        parts = []
        for number in range(num):
            span = slice(number * self.chunk, (number + 1) * self.chunk)
            some, their = kept[span], targets[span]
            if not len(their):  # another rank has more: keep it company, with what counts nothing
                some, their = kept[:1], targets[:1]
            part: Tensor = checkpoint(self._logprobs, some, their, use_reentrant=False)
            parts.append(part if len(targets[span]) else part[:0])
        return torch.cat(parts)

    def _num_chunks(self, num_tokens: int) -> int:
        """As many on every rank where ZeRO-3 gathers the weights for each, as ranks must gather together."""
        num = -(-num_tokens // self.chunk)
        weight = next(self._head.parameters(), None)
        if weight is None or not hasattr(weight, "ds_id"):
            return num
        most = torch.tensor(num, device=weight.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most)

    def _logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(C, H) and (C,) to (C,) float32."""
        from transformers.modeling_outputs import BaseModelOutputWithPast

        prefix = self._model.base_model_prefix
        modules = self._model._modules
        body = modules[prefix]
        modules[prefix] = _Said(BaseModelOutputWithPast(last_hidden_state=hidden[None]))
        try:
            logits = self._whole(input_ids=targets[None], use_cache=False).logits[0]  # (C, V)
        finally:
            modules[prefix] = body
        return -functional.cross_entropy(logits.float(), targets, reduction="none")


class _Said(nn.Module):
    """Stands in the place of a model's body, whose output is known."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._output


def answer_head(model: Any) -> AnswerHead:
    """The head that a model was given; it is given one if it has none."""
    head: AnswerHead | None = getattr(model, _ATTRIBUTE, None)
    if head is None:
        head = AnswerHead(model)
        setattr(model, _ATTRIBUTE, head)
        # still tells what it takes: `generate` of transformers asks
        model.forward = wraps(model.forward)(partial(AnswerHead.forward, head))
    return head
