"""How far rounding may move a result: bounds from the dtype, the number of roundings and the size of what is rounded.

u is the unit roundoff, half of `torch.finfo(dtype).eps`. Sources: Higham, Accuracy and Stability of Numerical
Algorithms, 2nd edition, chapters 3 and 4, whose bounds hold on every processor, in any order of the terms, with or
without fused multiply-add; and Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019, for long chains of roundings.

Bounds named `of_...` are absolute unless they say otherwise, and of two ways to compute the same.
Where the maths is the point of a test, it runs in `float64`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
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


def forward_roundings(config: Any) -> int:
    """Operations in a row from the embedding to a log-probability.

    14 a layer: two norms, the projections of queries, keys and outputs, rotation, scores, softmax, weighted sum, gate,
    activation, the product back, two residual sums. Then the last norm, the head, and the logarithm of a sum. Each
    counts as one rounding: the error of a product of vectors whose terms have either sign does not grow with their
    number (Higham and Mary, SIAM J. Sci. Comput. 42(5), 2020), and sums of one sign are short here.
    """
    return 14 * int(config.num_hidden_layers) + 3


def logit_size(model: Any) -> float:
    """The most that the terms of a logit can add up to: sqrt(H) * the largest row of the head (Cauchy-Schwarz).

    The last norm leaves a hidden state of length sqrt(H), times its own largest weight.
    """
    weight = model.get_output_embeddings().weight.detach().double()
    norms = [p for name, p in model.named_parameters() if "norm" in name.rsplit(".", 2)[-2] and p.ndim == 1]
    scale = max(float(norms[-1].detach().abs().max()), 1.0) if norms else 1.0
    return scale * math.sqrt(weight.shape[1]) * float(weight.norm(dim=1).max())


def of_logit(model: Any) -> float:
    """What a logit may differ by between two ways to compute it: 2 * the gamma of a forward pass * `logit_size`."""
    num = forward_roundings(model.config.get_text_config())
    return 2 * probable_gamma(num, next(model.parameters()).dtype) * logit_size(model)


def of_logprob(model: Any, num_tokens: int) -> float:
    """Nats that a sum of `num_tokens` log-probabilities may differ by between two ways to compute it.

    Each token has the error of its logit, and that of the logarithm of the sum over all. See `of_logit`.
    """
    return 2 * num_tokens * of_logit(model)


def of_losses(model: Any, *, beta: float, num_tokens: int, num_pairs: int, num_steps: int = 0) -> float:
    """What a global batch's mean loss may differ by between two ways to train, after `num_steps` updates.

    A margin is beta times four sums of `num_tokens` log-probabilities, and no loss here is steeper than its margin.
    Tokens and pairs round independently, so their sum grows with the square root and their mean falls with it. Each
    update hands on what rounding did to it, at most as much again.
    """
    margin = 4 * beta * math.sqrt(num_tokens) * of_logprob(model, 1)
    return (1 + num_steps) * margin / math.sqrt(num_pairs)


def of_small_run(folder: Path, num_steps: int, num_pairs: int = 4) -> float:
    """`of_losses` for the tests' small runs: beta 0.1, answers of 160 tokens at most, batches of 4 pairs at least.

    Args:
        folder: of the base model.
        num_steps: updates before the last loss that is compared.
        num_pairs: over which the mean is taken; 1 for a pair's rewards.
    """
    return of_losses(model_in(folder), beta=0.1, num_tokens=160, num_pairs=num_pairs, num_steps=num_steps)


def of_gradient_norm(folder: Path, num_steps: int, num_tokens: int = 8 * 2 * 160) -> float:
    """Relative, of the norm of all gradients or of a moment of them, after `num_steps` updates; see `of_losses`.

    Each token's share has the roundings of three forward passes; shares of either answer cancel, and what they leave
    is taken as no less than the root of their number.
    """
    num = 3 * forward_roundings(model_in(folder).config)
    return (1 + num_steps) * math.sqrt(num_tokens) * probable_gamma(num)


def assert_trained_alike(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    *,
    lr: float,
    num_steps: int,
) -> None:
    """Weights, by two ways to compute the same steps of RMSProp or AdamW.

    Both divide a gradient by its own size, so that an entry whose gradient is nothing but rounding moves as far as any
    other, either way: by at most lr / sqrt(1 - 0.99), the first step of RMSProp. Such entries are few: the distance in
    the mean is below a hundredth of the way.
    """
    assert found.keys() == expected.keys()
    apart = {name: (found[name].float() - expected[name].float()).abs() for name in expected}
    assert max(float(tensor.max()) for tensor in apart.values()) < 2 * 10 * lr * num_steps
    way = sum(float((expected[name].float() - start[name].float()).abs().sum()) for name in expected)
    assert sum(float(tensor.sum()) for tensor in apart.values()) < way / 100


@functools.cache
def model_in(folder: Path) -> Any:
    """The model of a folder, for its sizes; not to be changed."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def same_but_for_ties(found: Sequence[int], expected: Sequence[int], scores: Sequence[Tensor], bound: float) -> bool:
    """Whether two greedy answers are one, or part at a tie: where both tokens' scores are equal but for rounding.

    Args:
        found: token ids.
        expected: token ids.
        scores: what `expected` was chosen by at each place; (V,) each.
        bound: see `of_logit`.
    """
    for one, other, score in zip(found, expected, scores, strict=False):
        if one != other:
            return abs(float(score[one] - score[other])) <= bound
    return len(found) == len(expected)


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
    num = 3 * forward_roundings(model.config.get_text_config()) + num_tokens
    most = max(1.0, *map(abs, weights))
    return 2 * num_tokens * probable_gamma(num, dtype) * max(largest, most)


def few_threads() -> None:
    """One thread, or what OMP_NUM_THREADS says: for tiny models more of them only wait for each other."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


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
