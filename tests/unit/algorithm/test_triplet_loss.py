"""T-SPIN's loss (arXiv:2601.08198, equation 7), its gradient (theorem 1 there) and its metrics, by hand."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from spin_components.algorithm.loss import (
    AnswerLengths,
    AnswerLogprobs,
    Objective,
    PairTerms,
    advantages,
    pair_terms,
    triplet_losses,
)
from spin_components.algorithm.metrics import METRIC_SUMS, metric_sums, metrics_from_sums

_ROUNDING = 32 * torch.finfo(torch.float64).eps
"""Of at most sixteen float64 operations, among them exp and log, which err by up to two units in the last place."""
exactly = functools.partial(pytest.approx, rel=_ROUNDING, abs=_ROUNDING)


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# Two pairs: a triplet, and a pair without a third answer. Of the first u = -4 + 4.5 = 0.5 and v = -4.5 + 6.5 = 2, of
# the second u = -6 + 5 = -1.
POLICY = AnswerLogprobs(values(-4.0, -6.0), values(-4.5, -5.0), values(-6.5, 0.0))
REFERENCE = AnswerLogprobs(values(-5.0, -6.5), values(-4.0, -4.0), values(-6.0, 0.0))
LENGTHS = AnswerLengths(torch.tensor([4, 3]), torch.tensor([3, 5]), torch.tensor([2, 0]))


def logistic(value: float) -> float:
    """l(z) = -log sigmoid(z)."""
    return math.log1p(math.exp(-value))


def slope(value: float) -> float:
    """l'(z) = -1 / (1 + e^z)."""
    return -1.0 / (1.0 + math.exp(value))


def triplet(alpha: float = 1.0, history_weight: float = 0.1, **options: float) -> Objective:
    return Objective(0.2, "triplet", alpha=alpha, history_weight=history_weight, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.1), (0.5, 1.0), (0.1, 0.3)])
def test_the_loss_of_a_triplet_by_hand(alpha: float, beta: float) -> None:
    losses = pair_terms(POLICY, REFERENCE, LENGTHS, triplet(alpha, beta)).losses.tolist()
    assert losses[0] == exactly(logistic(alpha * 0.5) + beta * logistic(alpha * 2.0))
    # without a third answer the historical term is left out
    assert losses[1] == exactly(logistic(alpha * -1.0))


def test_the_gradient_is_that_of_theorem_1() -> None:
    alpha, beta = 0.5, 0.3
    actual, generated = (each.clone().requires_grad_() for each in (POLICY.actual, POLICY.generated))
    proto = values(-6.5, 0.0).requires_grad_()
    terms = pair_terms(AnswerLogprobs(actual, generated, proto), REFERENCE, LENGTHS, triplet(alpha, beta))
    terms.losses.sum().backward()  # type: ignore[no-untyped-call]
    first, second, history = slope(alpha * 0.5), slope(alpha * -1.0), slope(alpha * 2.0)
    gradients = [tensor.grad.tolist() for tensor in (actual, generated, proto) if tensor.grad is not None]
    assert gradients[0] == exactly([alpha * first, alpha * second])
    assert gradients[1] == exactly([alpha * (beta * history - first), -alpha * second])
    assert gradients[2] == exactly([-alpha * beta * history, 0.0])


def test_the_loss_has_no_reference_and_the_rewards_have() -> None:
    other = AnswerLogprobs(REFERENCE.actual - 3.0, REFERENCE.generated + 2.0, REFERENCE.proto)
    terms, others = (pair_terms(POLICY, reference, LENGTHS, triplet()) for reference in (REFERENCE, other))
    assert terms.losses.tolist() == others.losses.tolist()
    # 0.2 * (-4 + 5) and 0.2 * (-4.5 + 4)
    assert (terms.rewards.actual[0].item(), terms.rewards.generated[0].item()) == exactly((0.2, -0.1))
    assert others.rewards.actual[0].item() == exactly(0.8)


def test_without_a_historical_weight_or_third_answers_it_is_the_current_advantage_alone() -> None:
    expected = exactly([logistic(0.5), logistic(-1.0)])
    assert pair_terms(POLICY, REFERENCE, LENGTHS, triplet(history_weight=0.0)).losses.tolist() == expected
    pairs = AnswerLogprobs(POLICY.actual, POLICY.generated)
    assert pair_terms(pairs, REFERENCE, LENGTHS, triplet()).losses.tolist() == expected


def test_length_normalised_rewards_are_per_token() -> None:
    losses = pair_terms(POLICY, REFERENCE, LENGTHS, triplet(alpha=2.0, length_normalized=True)).losses.tolist()
    # log pi per token: -4 / 4, -4.5 / 3, -6.5 / 2; and -6 / 3, -5 / 5
    assert losses[0] == exactly(logistic(2 * 0.5) + 0.1 * logistic(2 * 1.75))
    assert losses[1] == exactly(logistic(2 * -1.0))


def test_the_sft_term_is_added() -> None:
    plain, added = (pair_terms(POLICY, REFERENCE, LENGTHS, triplet(sft_weight=weight)).losses for weight in (0.0, 0.5))
    assert (added - plain).tolist() == exactly([0.5 * 4.0 / 4, 0.5 * 6.0 / 3])


def test_the_first_loss_is_that_of_the_references_log_probabilities() -> None:
    losses = pair_terms(REFERENCE, REFERENCE, LENGTHS, triplet()).losses.tolist()
    assert losses == exactly([logistic(-1.0) + 0.1 * logistic(2.0), logistic(-2.5)])
    assert not triplet().begins_at_ln_2
    # up to alpha a nat, where SPIN's logistic loss with beta = 0.2 changes by 0.1 a nat
    assert (triplet().step_zero_scale, triplet(alpha=0.5).step_zero_scale) == (10.0, 5.0)
    assert triplet(length_normalized=True).step_zero_scale == Objective(0.2).step_zero_scale == 1.0
    assert (Objective(0.1).step_zero_scale, Objective(5.0).step_zero_scale) == (
        1.0,
        25.0,
    )  # the paper's, first and last


def test_a_third_answer_of_equal_likelihood_gives_ln_2_and_no_gradient_in_it() -> None:
    lengths = AnswerLengths(*(torch.tensor([1]) for _ in range(3)))
    found = advantages(AnswerLogprobs(values(-1.0), values(-2.0), values(-2.0)), lengths)
    assert triplet_losses(found, 0.1).item() == exactly(logistic(1.0) + 0.1 * math.log(2))


def sums_of(terms: PairTerms, *weights: float) -> Tensor:
    return metric_sums(terms, LENGTHS.generated, values(*weights))


def test_advantages_and_accuracies_are_metrics() -> None:
    terms = pair_terms(POLICY, REFERENCE, LENGTHS, triplet(alpha=2.0))
    metrics = metrics_from_sums(sums_of(terms, 1.0, 1.0), with_advantages=True)
    assert metrics["current_advantage_mean"] == exactly((2 * 0.5 + 2 * -1.0) / 2)
    assert metrics["current_acc"] == 0.5
    # of the one pair that has a third answer
    assert metrics["historical_advantage_mean"] == exactly(2 * 2.0)
    assert metrics["historical_acc"] == 1.0
    # by rewards against the reference: 0.2 * (1 + 0.5) and 0.2 * (0.5 + 1) are both above 0
    assert metrics["acc"] == 1.0


def test_pairs_that_fill_a_batch_have_no_part_in_the_metrics() -> None:
    terms = pair_terms(POLICY, REFERENCE, LENGTHS, triplet())
    metrics = metrics_from_sums(sums_of(terms, 0.0, 1.0), with_advantages=True)
    assert (metrics["current_advantage_mean"], metrics["current_acc"]) == (-1.0, 0.0)
    assert not {"historical_advantage_mean", "historical_acc"} & metrics.keys()  # no pair has a third answer


def test_other_losses_have_no_advantages() -> None:
    terms = pair_terms(POLICY, REFERENCE, LENGTHS, Objective(0.2))
    assert terms.advantages is None
    sums = sums_of(terms, 1.0, 1.0)
    assert sums[METRIC_SUMS.index("current_advantage") :].tolist() == [0.0] * 5
    assert not [name for name in metrics_from_sums(sums) if "advantage" in name or name.endswith("_acc")]
