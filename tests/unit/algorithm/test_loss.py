from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spin_components.algorithm.loss import (
    STEP_ZERO_LOSS,
    AnswerLogprobs,
    PairTerms,
    Rewards,
    rewards,
    spin_loss,
    spin_losses,
)
from spin_components.algorithm.metrics import METRIC_SUMS, metric_sums, metrics_from_sums
from support import bounds

FORMULA = bounds.gamma(20)
"""Relative error of a formula of a few float32 operations, of which exp and log may be off by several units."""
assert_close = partial(torch.testing.assert_close, rtol=FORMULA, atol=0.0)


def logprobs(actual: list[float], generated: list[float]) -> AnswerLogprobs:
    return AnswerLogprobs(torch.tensor(actual), torch.tensor(generated))


def given(actual: list[float], generated: list[float]) -> Rewards:
    return Rewards(torch.tensor(actual), torch.tensor(generated))


def terms_of(reward: Rewards) -> PairTerms:
    """Terms of the paper's loss; each human answer has a negative log-likelihood of 1 nat a token."""
    return PairTerms(spin_losses(reward), reward, torch.ones_like(reward.actual))


def sums_of(reward: Rewards, lengths: list[int], weights: list[float]) -> Tensor:
    return metric_sums(terms_of(reward), torch.tensor(lengths), torch.tensor(weights))


def test_rewards_by_hand() -> None:
    # log-ratios: actual -1 - -3 = 2 and -2 - -2 = 0, generated -6 - -5 = -1 and -4 - -8 = 4; beta halves them
    computed = rewards(logprobs([-1.0, -2.0], [-6.0, -4.0]), logprobs([-3.0, -2.0], [-5.0, -8.0]), beta=0.5)
    assert_close(computed.actual, torch.tensor([1.0, 0.0]))
    assert_close(computed.generated, torch.tensor([-0.5, 2.0]))


def test_loss_by_hand() -> None:
    # log-ratios: actual -1 - -3 = 2, generated -6 - -5 = -1; margin = 0.5 * (2 - -1) = 1.5
    loss = spin_loss(logprobs([-1.0], [-6.0]), logprobs([-3.0], [-5.0]), beta=0.5)
    assert_close(loss, torch.tensor(math.log1p(math.exp(-1.5))))


def test_loss_is_the_mean_over_pairs() -> None:
    # margins 1.5 (as above) and 0.5 * (0 - 4) = -2
    loss = spin_loss(logprobs([-1.0, -2.0], [-6.0, -4.0]), logprobs([-3.0, -2.0], [-5.0, -8.0]), beta=0.5)
    expected = (math.log1p(math.exp(-1.5)) + math.log1p(math.exp(2.0))) / 2
    assert_close(loss, torch.tensor(expected))


def test_loss_is_ln_2_where_policy_and_reference_agree() -> None:
    both = logprobs([-3.0, -100.0], [-50.0, -0.25])
    assert spin_losses(rewards(both, both, beta=5.0)).tolist() == pytest.approx([STEP_ZERO_LOSS] * 2, rel=FORMULA)
    assert pytest.approx(0.6931471805599453) == STEP_ZERO_LOSS


def test_loss_equals_minus_logsigmoid_of_the_margin() -> None:
    margins = torch.linspace(-30.0, 30.0, 121)
    losses = spin_losses(Rewards(margins, torch.zeros_like(margins)))
    assert_close(losses, -functional.logsigmoid(margins))


def test_loss_stays_finite_at_margins_that_overflow_exp() -> None:
    # softplus(1000) = 1000 + log1p(exp(-1000)) = 1000, softplus(-1000) = exp(-1000) = 0 in float32
    assert spin_losses(given([-500.0, 500.0], [500.0, -500.0])).tolist() == [1000.0, 0.0]


def test_gradient_raises_the_human_answer_and_lowers_the_generated_one() -> None:
    policy = AnswerLogprobs(
        torch.tensor([-1.0, -2.0], requires_grad=True), torch.tensor([-6.0, -2.0], requires_grad=True)
    )
    spin_loss(policy, logprobs([-3.0, -2.0], [-5.0, -2.0]), beta=0.5).backward()  # type: ignore[no-untyped-call]
    # d loss / d actual = -beta * sigmoid(-margin) / B, at margins 1.5 and 0; the generated one has the other sign
    expected = torch.tensor([-0.25 / (1.0 + math.exp(1.5)), -0.125])
    assert_close(policy.actual.grad, expected)
    assert_close(policy.generated.grad, -expected)


def test_metrics_by_hand() -> None:
    # margins 1 - 0 = 1, 3 - 3 = 0, 0 - 2 = -2: one of three is won, a tie is not
    metrics = metrics_from_sums(sums_of(given([1.0, 3.0, 0.0], [0.0, 3.0, 2.0]), [5, 7, 9], [1.0, 1.0, 1.0]))
    assert metrics["acc"] == pytest.approx(1 / 3)
    assert metrics["loss"] == pytest.approx((math.log1p(math.exp(-1)) + math.log(2) + math.log1p(math.exp(2))) / 3)
    assert metrics["rewards_actual_mean"] == pytest.approx(4 / 3)
    assert metrics["rewards_generated_mean"] == pytest.approx(5 / 3)
    assert metrics["rewards_all_mean"] == pytest.approx(1.5)
    # the six rewards 1 3 0 0 3 2 lie -.5 1.5 -1.5 -1.5 1.5 .5 off their mean: squares sum to 9.5, over 6 - 1
    assert metrics["rewards_all_std"] == pytest.approx(math.sqrt(9.5 / 5))
    assert metrics["avg_generated_lengths"] == pytest.approx(7.0)


def test_deviation_is_the_sample_deviation_of_all_rewards() -> None:
    generator = torch.Generator().manual_seed(0)
    reward = Rewards(torch.randn(40, generator=generator), 3.0 + torch.randn(40, generator=generator))
    deviation = metrics_from_sums(metric_sums(terms_of(reward), torch.ones(40), torch.ones(40)))["rewards_all_std"]
    # the variance is a difference of sums of squares, over 79; its root's error is half of that over the root
    bound = 2 * bounds.of_sum((torch.cat(reward).double() ** 2).tolist(), torch.float64) / 79 / (2 * deviation)
    assert deviation == pytest.approx(torch.cat(reward).double().std().item(), abs=bound)


def test_deviation_of_equal_rewards_is_zero() -> None:
    # rounding must not make the variance negative
    metrics = metrics_from_sums(sums_of(given([0.1] * 3, [0.1] * 3), [1, 1, 1], [1.0, 1.0, 1.0]))
    variance = 2 * bounds.of_sum([0.01] * 6, torch.float64) / 5
    assert metrics["rewards_all_std"] == pytest.approx(0.0, abs=math.sqrt(variance))


def test_sums_over_micro_batches_equal_those_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    actual, generated = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    lengths, weights = torch.arange(1, 8), torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    parts = [slice(0, 3), slice(3, 4), slice(4, 7)]
    added = torch.stack(
        [metric_sums(terms_of(Rewards(actual[part], generated[part])), lengths[part], weights[part]) for part in parts]
    ).sum(0)
    assert_close(added, metric_sums(terms_of(Rewards(actual, generated)), lengths, weights))


def test_pairs_of_weight_0_do_not_count() -> None:
    with_filling = sums_of(given([1.0, 900.0], [0.0, -900.0]), [5, 77], [1.0, 0.0])
    assert_close(with_filling, sums_of(given([1.0], [0.0]), [5], [1.0]))
    assert with_filling[METRIC_SUMS.index("num_pairs")] == 1


def test_sums_are_float64_without_gradient() -> None:
    actual = torch.tensor([1.0], requires_grad=True)
    sums = metric_sums(terms_of(Rewards(actual, actual * 2)), torch.tensor([3]), torch.tensor([1.0]))
    assert (sums.dtype, sums.requires_grad, sums.shape) == (torch.float64, False, (len(METRIC_SUMS),))


def test_a_nan_reward_gives_nan_metrics() -> None:
    metrics = metrics_from_sums(sums_of(given([math.nan], [0.0]), [1], [1.0]))
    assert math.isnan(metrics["loss"])
    assert math.isnan(metrics["rewards_all_std"])
