"""How far rounding may move a result: bounds from the dtype, the number of roundings and the size of what is rounded.

u is the unit roundoff, half of `torch.finfo(dtype).eps`. Sources: Higham, Accuracy and Stability of Numerical
Algorithms, 2nd edition, chapters 3 and 4, whose bounds hold on every processor, in any order of the terms, with or
without fused multiply-add; and Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019, for long chains of roundings.
Where the maths is the point of a test, it runs in `float64`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: the largest relative error of one operation rounded to nearest (Higham, theorem 2.2)."""
    return torch.finfo(dtype).eps / 2


def gamma(num: float, dtype: torch.dtype = torch.float32) -> float:
    """gamma_n = n u / (1 - n u): the largest relative error of n roundings in a row (Higham, lemma 3.1)."""
    product = num * unit_roundoff(dtype)
    assert product < 1, f"{num:g} roundings leave no digit of {dtype}"
    return product / (1 - product)


def probable_gamma(num: float, dtype: torch.dtype = torch.float32) -> float:
    """gamma of 4 sqrt(n) roundings: what n roundings with errors of mean 0 keep to.

    A chain of n exceeds it with a probability below 2 exp(-4^2 / 2), 7e-4 (Higham and Mary, theorem 2.4, lambda = 4),
    for errors that are all as large as u; real ones are a third of that on average.
    """
    return gamma(4 * math.sqrt(num), dtype)


def of_sum(terms: Iterable[float], dtype: torch.dtype = torch.float32) -> float:
    """gamma_n * sum |x|: of a sum of n rounded terms, in any order (Higham, equation 4.4)."""
    sizes = [abs(term) for term in terms]
    return gamma(len(sizes), dtype) * sum(sizes)


def forward_roundings(config: Any, length: int) -> int:
    """Roundings in a row from the embedding to a log-probability, for a sequence of `length` tokens.

    An inner product of k terms is k of them, a norm of H values and a softmax over k as many. A layer: two norms and
    three products over H (queries, output, gate), scores over D, softmax and weighted sum over the tokens, and the
    product back from the inner size; the activation and the residual sums are the 16. Then the last norm, the head's
    product over H, and the logarithm of a sum over the vocabulary.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = 5 * hidden + head + 2 * length + inner + 16
    return int(layers * layer + 2 * hidden + config.vocab_size)


def logit_size(model: Any) -> float:
    """The most that the terms of a logit can add up to: sqrt(H) * the largest row of the head (Cauchy-Schwarz).

    The last norm leaves a hidden state of length sqrt(H), times its own largest weight.
    """
    weight = model.get_output_embeddings().weight.detach().double()
    norms = [p for name, p in model.named_parameters() if "norm" in name.rsplit(".", 2)[-2] and p.ndim == 1]
    scale = max(float(norms[-1].detach().abs().max()), 1.0) if norms else 1.0
    return scale * math.sqrt(weight.shape[1]) * float(weight.norm(dim=1).max())


def of_logprob(model: Any, num_tokens: int, *, length: int = 64, dtype: torch.dtype | None = None) -> float:
    """Nats that a sum of `num_tokens` log-probabilities may differ by between two ways to compute it.

    probable_gamma(roundings of a forward pass) * the size of a logit, for the logit and for the logarithm of the sum
    over all, in both ways: 4 times a token; and the sum itself.

    Args:
        model: whose sizes and weights count; its dtype is that of the computation unless `dtype` is given.
        num_tokens: of the answer.
        length: tokens of the longest sequence, prompt and answer.
        dtype: of the matrix products, where it is not that of the weights.
    """
    dtype = dtype or next(model.parameters()).dtype
    num = forward_roundings(model.config.get_text_config(), length) + num_tokens
    return 4 * num_tokens * probable_gamma(num, dtype) * logit_size(model)


def of_gradients(model: Any, gradients: Mapping[str, Tensor], weights: Sequence[float], num_tokens: int) -> float:
    """What any entry of a gradient of sum w_i * log pi(answer i) may differ by between two ways to compute it.

    The way back takes each product of the way forward twice: 3 times its roundings. They are relative to what is
    summed, which may cancel: taken as each token's share being as large as the largest entry of all.

    Args:
        model: whose sizes count.
        gradients: of every parameter, by one of the ways.
        weights: w, one an answer.
        num_tokens: of all answers.
    """
    dtype = next(model.parameters()).dtype
    largest = max(float(tensor.abs().max()) for tensor in gradients.values())
    num = 3 * forward_roundings(model.config.get_text_config(), 64) + num_tokens
    most = max(1.0, *map(abs, weights))
    return 2 * num_tokens * probable_gamma(num, dtype) * max(largest, most)


class _Float64(TorchFunctionMode):
    """Takes every request for float32 for one for float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        named = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widened, args), **named)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def float64() -> Iterator[None]:
    """Compute in float64 throughout: new tensors, and where code asks for float32, as norms and softmax do.

    What stays float32 is what was so before, a model's weights among them: make those `double()`.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(before)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` of a checkpoint: autograd leaves every mode, so the second forward pass enters float64 again."""
    return nullcontext(), float64()
