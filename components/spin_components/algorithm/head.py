"""Log-probabilities of selected tokens, computed without holding all logits in memory.

Logits of T tokens over a vocabulary V are by far the largest tensors of a language model's training: three times T x V
float32, for the logits, their log-softmax and their gradient. Here logits are computed for the selected tokens only,
one chunk at a time; with more than one chunk, the backward pass recomputes them (activation checkpointing). Every chunk
goes through the model's own `forward`, with its body replaced by the known hidden states in the body's own output
object, so that whatever an architecture does to its logits (soft-capping, scaling, a bias) applies. A model whose
`forward` has no separate body computes all logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from spin_components.algorithm.batching import logit_chunk

_ATTRIBUTE = "spin_answer_head"


class AnswerHead:
    """A replacement of a model's `forward` that takes `targets` and returns their log-probabilities.

    Attributes:
        chunk: number of tokens whose logits are in memory at a time.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._model_forward: Callable[..., Any] = model.forward
        self._head = model.get_output_embeddings()
        self._body: str | None = None  # name of the body among the model's modules; "" if it has none
        self.chunk = logit_chunk(model.config.get_text_config().vocab_size)

    def forward(self, *args: Any, targets: Tensor | None = None, positions: Tensor | None = None, **kwargs: Any) -> Any:
        """Log-probabilities of the targets in nats, (L,) float32; without targets, the model's own output.

        Args:
            *args: arguments of the model's own `forward`.
            targets: (L,) int64, tokens to score; L >= 1.
            positions: (L,) int64, index into the flattened batch (N x T) of the logits that predict each target.
            **kwargs: see args.
        """
        if targets is None or positions is None:
            return self._model_forward(*args, **kwargs)
        body = self.body
        if body is None:
            logits = self._model_forward(*args, **kwargs).logits.flatten(0, 1)  # (N x T, V)
            return _target_logprobs(logits.index_select(0, positions), targets)
        output = body(*args, **kwargs)
        selected = output.last_hidden_state.flatten(0, 1).index_select(0, positions)  # (L, H)
        logprobs = partial(self._logprobs, output)
        num_chunks = self._num_chunks(len(targets))
        if num_chunks == 1:
            return logprobs(selected, targets)
        parts = []
        for number in range(num_chunks):
            span = slice(number * self.chunk, (number + 1) * self.chunk)
            chunk_hidden, chunk_targets = selected[span], targets[span]
            if not len(chunk_targets):  # other ranks have more chunks: join their gathers with one token, then drop it
                chunk_hidden, chunk_targets = selected[:1], targets[:1]
            part: Tensor = checkpoint(logprobs, chunk_hidden, chunk_targets, use_reentrant=False)
            parts.append(part if len(targets[span]) else part[:0])
        return torch.cat(parts)

    @property
    def body(self) -> Any:
        """The module that gives hidden states to the head; None if `forward` has no such module."""
        if self._body is None:
            self._body = self._find_body()
        return self._model.get_submodule(self._body) if self._body else None

    def _num_chunks(self, num_tokens: int) -> int:
        """Number of chunks; under ZeRO-3 the maximum over ranks, which must gather the weights together."""
        num_chunks = -(-num_tokens // self.chunk)
        weight = next(self._head.parameters(), None)
        if weight is None or not hasattr(weight, "ds_id"):
            return num_chunks
        maximum = torch.tensor(num_chunks, device=weight.device)
        torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX)
        return int(maximum)

    def _find_body(self) -> str:
        """Name of the module that `forward` calls first; "" unless it has the embeddings and not the head.

        Nothing is computed, and the hooks run before DeepSpeed's, which would gather weights.
        """
        modules = {name: module for name, module in self._model.named_modules() if name}
        hooks = [
            module.register_forward_pre_hook(partial(_stop, name), prepend=True) for name, module in modules.items()
        ]
        try:
            self._model_forward(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=False)
            return ""
        except _ReachedError as reached:
            name = reached.name
        finally:
            for hook in hooks:
                hook.remove()
        inside = list(modules[name].modules())[1:]
        embeddings = self._model.get_input_embeddings()
        is_body = any(module is embeddings for module in inside) and all(module is not self._head for module in inside)
        return name if is_body else ""

    def _logprobs(self, output: Any, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities of C targets, (C,) float32.

        Args:
            output: the body's own.
            hidden: (C, H), takes the place of its hidden states.
            targets: (C,).
        """
        parent, _, name = str(self._body).rpartition(".")
        modules = self._model.get_submodule(parent)._modules
        body = modules[name]
        modules[name] = _ConstantBody(type(output)(**{**output, "last_hidden_state": hidden[None]}))
        try:
            logits = self._model_forward(input_ids=targets[None], use_cache=False).logits[0]  # (C, V)
        finally:
            modules[name] = body
        return _target_logprobs(logits, targets)


def _target_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """(C,) float32, from logits (C, V) and targets (C,)."""
    return -functional.cross_entropy(logits.float(), targets, reduction="none")


class _ReachedError(Exception):
    """A module was called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _stop(name: str, *_: object) -> None:
    raise _ReachedError(name)


class _ConstantBody(nn.Module):
    """Replaces a model's body by one that returns a given output."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._output


def answer_head(model: Any) -> AnswerHead:
    """The `AnswerHead` of a model; installed as its `forward` on the first call."""
    head: AnswerHead | None = getattr(model, _ATTRIBUTE, None)
    if head is None:
        head = AnswerHead(model)
        setattr(model, _ATTRIBUTE, head)
        # keep the signature: transformers' `generate` inspects it
        model.forward = wraps(model.forward)(partial(AnswerHead.forward, head))
    return head
