from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spin_components.algorithm.loss import (
    AnswerLengths,
    AnswerLogprobs,
    Loss,
    Objective,
    Rewards,
    nce_losses,
    opponent_logprobs,
    pair_terms,
    per_token,
    spin_losses,
)
from spin_components.algorithm.metrics import metric_sums, metrics_from_sums
from support.bounds import gamma

# One pair: an answer of 4 tokens by a human, one of 2 tokens by the reference.
POLICY = AnswerLogprobs(torch.tensor([-4.0]), torch.tensor([-6.0]))
REFERENCE = AnswerLogprobs(torch.tensor([-8.0]), torch.tensor([-5.0]))
BASE = AnswerLogprobs(torch.tensor([-10.0]), torch.tensor([-3.0]))
LENGTHS = AnswerLengths(torch.tensor([4]), torch.tensor([2]))


def losses_of(loss: Loss, *margins: float) -> list[float]:
    margin = torch.tensor(margins)
    losses: list[float] = spin_losses(Rewards(margin + 2.0, torch.full_like(margin, 2.0)), loss).tolist()
    return losses


def close(values: Tensor, *expected: float) -> bool:
    """To the rounding of a few float32 operations, exp and log among them."""
    return values.tolist() == pytest.approx(expected, rel=gamma(20))


def test_hinge_by_hand() -> None:
    assert losses_of("hinge", -2.0, 0.0, 0.75, 1.0, 5.0) == [3.0, 1.0, 0.25, 0.0, 0.0]


def test_correlation_by_hand() -> None:
    assert losses_of("correlation", -2.0, 0.0, 0.75, 5.0) == [3.0, 1.0, 0.25, -4.0]


def test_least_squares_by_hand() -> None:
    assert losses_of("least_squares", -2.0, 0.0, 0.5, 1.0, 3.0) == [9.0, 1.0, 0.25, 0.0, 4.0]


def test_least_squares_is_ipos_loss_times_beta_squared() -> None:
    # IPO with tau: (h - 1 / (2 tau))^2, h the difference of the log-ratios; here h = 4 + 1 = 5, tau = 0.2 / 2 = 0.1:
    # (5 - 5)^2 = 0; and with beta 0.5, tau 0.25: (5 - 2)^2 * 0.5^2 = 2.25
    assert close(pair_terms(POLICY, REFERENCE, LENGTHS, Objective(0.2, "least_squares")).losses, 0.0)
    assert close(pair_terms(POLICY, REFERENCE, LENGTHS, Objective(0.5, "least_squares")).losses, 2.25)


def test_nce_by_hand() -> None:
    # mu = 1, rewards 1 and -0.5: -log s(1) - log(1 - s(-0.5)) = log(1 + e^-1) + log(1 + e^-0.5)
    rewards = Rewards(torch.tensor([1.0]), torch.tensor([-0.5]))
    assert close(nce_losses(rewards), math.log1p(math.exp(-1.0)) + math.log1p(math.exp(-0.5)))
    # mu = 3: s(x) = 1 / (1 + 3 e^-x); -log s(1) = log(1 + 3 e^-1), and 1 - s(-0.5) = 3 e^0.5 / (1 + 3 e^0.5), whose
    # -log is log(1 + e^-0.5 / 3), three times
    expected = math.log1p(3 * math.exp(-1.0)) + 3 * math.log1p(math.exp(-0.5) / 3)
    assert close(nce_losses(rewards, 3.0), expected)


def test_nce_classifies_each_answer_by_itself() -> None:
    # POLICY's log-ratios: 4 and -1; beta 0.5: rewards 2 and -0.5. d loss / d log pi(y) = -beta (1 - s(2)), and
    # d loss / d log pi(y') = beta mu s(-0.5), where s(x) = 1 / (1 + 2 e^-x)
    actual, generated = (each.clone().requires_grad_() for each in (POLICY.actual, POLICY.generated))
    terms = pair_terms(AnswerLogprobs(actual, generated), REFERENCE, LENGTHS, Objective(0.5, "nce", mu=2.0))
    terms.losses.sum().backward()  # type: ignore[no-untyped-call]
    assert actual.grad is not None
    assert generated.grad is not None
    assert close(actual.grad, -0.5 * (1 - 1 / (1 + 2 * math.exp(-2.0))))
    assert close(generated.grad, 0.5 * 2 / (1 + 2 * math.exp(0.5)))
    assert (close(terms.rewards.actual, 2.0), close(terms.rewards.generated, -0.5)) == (True, True)


def test_nce_has_its_minimum_where_the_policy_has_the_humans_density() -> None:
    # one answer that the human gives with p and the reference with q: the expected loss in the reward r,
    # p log(1 + mu e^-r) + q mu log(1 + e^r / mu), is least at r = log(p / q), for any mu
    human, reference = 0.6, 0.2
    for mu in (0.5, 1.0, 4.0):
        reward = torch.tensor([math.log(human / reference)] * 2, requires_grad=True)
        weights = torch.tensor([human, reference])
        alone = nce_losses(Rewards(reward[:1], torch.full((1,), -1e4)), mu)  # a generated reward of -1e4 adds 0
        other = nce_losses(Rewards(torch.full((1,), 1e4), reward[1:]), mu)
        (torch.cat([alone, other]) * weights).sum().backward()  # type: ignore[no-untyped-call]
        assert reward.grad is not None
        # two slopes of opposite sign cancel to their rounding
        assert reward.grad.sum().item() == pytest.approx(0.0, abs=abs(reward.grad[0].item()) * gamma(20))


def test_label_smoothing_by_hand() -> None:
    # margin 2: 0.9 * log(1 + e^-2) + 0.1 * log(1 + e^2)
    losses = spin_losses(Rewards(torch.tensor([2.0]), torch.tensor([0.0])), label_smoothing=0.1)
    assert close(losses, 0.9 * math.log1p(math.exp(-2)) + 0.1 * math.log1p(math.exp(2)))


def test_smoothed_loss_has_its_minimum_at_a_finite_margin() -> None:
    # its slope is 0 where sigmoid(-m) = epsilon: at m = log((1 - epsilon) / epsilon) = log 9 for 0.1
    margin = torch.tensor([math.log(9.0), math.log(9.0) + 1.0, math.log(9.0) - 1.0], requires_grad=True)
    spin_losses(Rewards(margin, torch.zeros(3)), label_smoothing=0.1).sum().backward()  # type: ignore[no-untyped-call]
    assert margin.grad is not None
    slopes = margin.grad.tolist()
    # 0.9 * 0.1 - 0.1 * 0.9, each to rounding
    assert slopes[0] == pytest.approx(0.0, abs=2 * 0.09 * gamma(20))
    assert slopes[1] > 0 > slopes[2]


def test_means_over_tokens_by_hand() -> None:
    means = per_token(POLICY, LENGTHS)
    assert (means.actual.tolist(), means.generated.tolist()) == ([-1.0], [-3.0])


def test_length_normalised_rewards_by_hand() -> None:
    # log-ratios a token: (-4 + 8) / 4 = 1 and (-6 + 5) / 2 = -0.5; margin 0.5 * 1.5 = 0.75
    terms = pair_terms(POLICY, REFERENCE, LENGTHS, Objective(0.5, length_normalized=True))
    assert close(terms.rewards.actual, 0.5)
    assert close(terms.rewards.generated, -0.25)
    assert close(terms.losses, math.log1p(math.exp(-0.75)))


def test_the_sft_term_by_hand() -> None:
    # margin 0.5 * (4 + 1) = 2.5; negative log-likelihood a token 4 / 4 = 1, weight 0.3
    terms = pair_terms(POLICY, REFERENCE, LENGTHS, Objective(0.5, sft_weight=0.3))
    assert close(terms.sft, 1.0)
    assert close(terms.losses, math.log1p(math.exp(-2.5)) + 0.3)
    assert close(pair_terms(POLICY, REFERENCE, LENGTHS, Objective(0.5)).losses, math.log1p(math.exp(-2.5)))


def test_supervised_fine_tuning_is_the_human_answers_alone() -> None:
    actual, generated = (each.clone().requires_grad_() for each in (POLICY.actual, POLICY.generated))
    terms = pair_terms(AnswerLogprobs(actual, generated), REFERENCE, LENGTHS, Objective(0.5, "sft"))
    assert close(terms.losses, 1.0)  # 4 / 4
    terms.losses.sum().backward()  # type: ignore[no-untyped-call]
    assert actual.grad is not None
    assert close(actual.grad, -0.25)
    assert generated.grad is None
    # rewards are those of self-play, for comparison: 0.5 * 4 and 0.5 * -1
    assert (close(terms.rewards.actual, 2.0), close(terms.rewards.generated, -0.5)) == (True, True)


def test_the_sft_term_is_a_mean_over_tokens_with_and_without_length_normalisation() -> None:
    for normalized in (False, True):
        objective = Objective(0.5, "correlation", length_normalized=normalized, sft_weight=0.3)
        actual = torch.tensor([-4.0], requires_grad=True)
        policy = AnswerLogprobs(actual, POLICY.generated)
        pair_terms(policy, REFERENCE, LENGTHS, objective).losses.sum().backward()  # type: ignore[no-untyped-call]
        # d loss / d log pi(y) = -beta (of a token: / 4), and -0.3 / 4 of the term
        assert actual.grad is not None
        assert actual.grad.item() == pytest.approx(-(0.5 / 4 if normalized else 0.5) - 0.3 / 4)


def test_the_opponent_of_alpha_spin_by_hand() -> None:
    # 0.75 * -8 + 0.25 * -10 = -8.5; 0.75 * -5 + 0.25 * -3 = -4.5
    opponent = opponent_logprobs(REFERENCE, BASE, 0.25)
    assert (opponent.actual.tolist(), opponent.generated.tolist()) == ([-8.5], [-4.5])
    # margin 0.5 * ((-4 + 8.5) - (-6 + 4.5)) = 3
    assert close(pair_terms(POLICY, opponent, LENGTHS, Objective(0.5, "correlation", base_weight=0.25)).losses, -2.0)


def test_the_opponent_changes_the_margin_by_the_kl_term() -> None:
    # the margin against the mixture is that against the reference, and alpha times what the reference gained on the
    # base: beta * alpha * ((-8 + 10) - (-5 + 3)) = 0.5 * 0.25 * 4 = 0.5
    plain = pair_terms(POLICY, REFERENCE, LENGTHS, Objective(0.5)).rewards
    mixed = pair_terms(POLICY, opponent_logprobs(REFERENCE, BASE, 0.25), LENGTHS, Objective(0.5)).rewards
    assert close((mixed.actual - mixed.generated) - (plain.actual - plain.generated), 0.5)


def test_the_opponent_is_the_reference_at_0_and_the_base_at_1() -> None:
    assert opponent_logprobs(REFERENCE, BASE, 0.0) == REFERENCE
    assert opponent_logprobs(REFERENCE, BASE, 1.0) == BASE


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective(0.5), math.log(2)),
        (Objective(0.5, label_smoothing=0.2), math.log(2)),
        (Objective(0.5, length_normalized=True), math.log(2)),
        (Objective(0.5, "hinge"), 1.0),
        (Objective(0.5, "correlation"), 1.0),
        (Objective(0.5, "least_squares"), 1.0),
        (Objective(0.5, "nce"), 2 * math.log(2)),
        (Objective(0.5, "nce", mu=2.0), math.log(3) + 2 * math.log(1.5)),
        (Objective(0.5, "sft"), 2.0),  # 8 / 4, as below
        # the human answer's negative log-likelihood a token under the reference is 8 / 4
        (Objective(0.5, sft_weight=0.1), math.log(2) + 0.2),
        # beta * alpha * 4, as above
        (Objective(0.5, "correlation", base_weight=0.25), 0.5),
    ],
)
def test_loss_before_the_first_update(objective: Objective, expected: float) -> None:
    opponent = opponent_logprobs(REFERENCE, BASE, objective.base_weight)
    assert close(pair_terms(REFERENCE, opponent, LENGTHS, objective).losses, expected)
    assert objective.begins_at_ln_2 == (expected == math.log(2))


def test_the_sft_loss_is_a_metric_if_requested() -> None:
    policy = AnswerLogprobs(torch.tensor([-4.0, -10.0, -99.0]), torch.tensor([-6.0, -6.0, -6.0]))
    lengths = AnswerLengths(torch.tensor([4, 2, 1]), torch.tensor([2, 2, 2]))
    terms = pair_terms(policy, policy, lengths, Objective(0.5, "hinge", sft_weight=0.5))
    sums = metric_sums(terms, lengths.generated, torch.tensor([1.0, 1.0, 0.0]))  # the third is filling
    metrics = metrics_from_sums(sums, with_sft=True)
    assert metrics["sft_loss"] == pytest.approx((1.0 + 5.0) / 2)
    assert metrics["loss"] == pytest.approx(1.0 + 0.5 * 3.0)
    assert "sft_loss" not in metrics_from_sums(sums)
