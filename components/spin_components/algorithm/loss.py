"""The SPIN objective, its variants and their metrics.

Shapes: B pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

STEP_ZERO_LOSS = math.log(2.0)
STEP_ZERO_TOLERANCE = {"float32": 1e-5, "bf16": 2e-3}
"""Allowed deviation of an iteration's first loss from its expected value, by compute precision; relative where the
expected value is above 1. See `training.train_step`."""

Loss = Literal["logistic", "hinge", "correlation", "least_squares", "nce", "sft"]


class AnswerLogprobs(NamedTuple):
    """log pi(answer | prompt) in nats, summed over answer tokens; each (B,) float32."""

    actual: Tensor
    generated: Tensor


class AnswerLengths(NamedTuple):
    """Tokens of each answer; each (B,)."""

    actual: Tensor
    generated: Tensor


class Rewards(NamedTuple):
    """beta * (log pi - log pi_ref) of each answer, where pi_ref is the reference or the opponent of
    `opponent_logprobs`; (B,) float32."""

    actual: Tensor
    generated: Tensor


class Objective(NamedTuple):
    """Options of the training objective; all defaults are the paper's.

    Attributes:
        beta: weight of the log-ratio (NeMo's `ref_policy_kl_penalty`), > 0.
        loss: loss function of the margin, see `spin_losses`; of each answer alone, see `nce_losses`; or `sft`, the
            human answer's negative log-likelihood a token, without self-play.
        label_smoothing: see `spin_losses`.
        length_normalized: whether rewards use log-probabilities averaged over tokens, see `per_token`.
        sft_weight: weight of the human answer's negative log-likelihood a token, see `pair_terms`.
        base_weight: weight of the base model in the opponent, see `opponent_logprobs`.
        mu: noise ratio of the loss "nce", see `nce_losses`.
    """

    beta: float
    loss: Loss = "logistic"
    label_smoothing: float = 0.0
    length_normalized: bool = False
    sft_weight: float = 0.0
    base_weight: float = 0.0
    mu: float = 1.0

    @property
    def begins_at_ln_2(self) -> bool:
        """Whether the loss is ln 2 for any pairs when the policy equals the reference."""
        return self.loss == "logistic" and not self.sft_weight and not self.base_weight


class PairTerms(NamedTuple):
    """Terms of the objective for each pair; tensors (B,) float32.

    Attributes:
        losses: the quantity to minimise.
        rewards: implicit rewards of both answers.
        sft: the human answer's negative log-likelihood a token, unweighted.
    """

    losses: Tensor
    rewards: Rewards
    sft: Tensor


def rewards(policy: AnswerLogprobs, reference: AnswerLogprobs, beta: float) -> Rewards:
    """Implicit rewards r(x, a) = beta * (log pi - log pi_ref), the terms of arXiv:2401.01335's objective.

    Args:
        policy: each (B,) float32, with gradient.
        reference: the same under the frozen reference; no gradient.
        beta: weight of the log-ratio (NeMo's `ref_policy_kl_penalty`), > 0.
    """
    return Rewards(beta * (policy.actual - reference.actual), beta * (policy.generated - reference.generated))


def spin_losses(rewards: Rewards, loss: Loss = "logistic", label_smoothing: float = 0.0) -> Tensor:
    """Loss of each pair's margin m = r(x, y) - r(x, y'); (B,) float32.

    SPIN (arXiv:2401.01335) allows any convex decreasing loss and names three: logistic, log(1 + e^-m), with which the
    paper trains; hinge, max(0, 1 - m); correlation, 1 - m. Least squares, (1 - m)^2, increases again above a margin
    of 1: it is IPO's loss (arXiv:2310.12036, tau = beta / 2) times beta^2, in the form of arXiv:2402.05749.

    Args:
        rewards: each (B,).
        loss: name of the loss function; not "nce" or "sft", which have no margin.
        label_smoothing: epsilon of the logistic loss, (1 - epsilon) * l(m) + epsilon * l(-m): the probability that the
            two answers of a pair are swapped ("conservative DPO", as in arXiv:2403.00409).
    """
    margin = rewards.actual - rewards.generated
    match loss:
        case "hinge":
            return functional.relu(1 - margin)
        case "correlation":
            return 1 - margin
        case "least_squares":
            return (1 - margin).square()
    losses = functional.softplus(-margin)
    if label_smoothing:
        return (1 - label_smoothing) * losses + label_smoothing * functional.softplus(margin)
    return losses


def nce_losses(rewards: Rewards, mu: float = 1.0) -> Tensor:
    """SPACE's loss of each pair (arXiv:2512.07175, the main player's objective in the section on the method); (B,)
    float32.

    Noise-contrastive estimation classifies each answer by itself: with s(x) = 1 / (1 + mu e^-x), the probability that
    an answer is the human's, the loss is -log s(r(x, y)) - mu log(1 - s(r(x, y'))), which is
    log(1 + mu e^-r(x, y)) + mu log(1 + e^r(x, y') / mu). So it rewards the likelihood of the human answer as such, not
    only its lead over the generated one. At r = 0 it is log(1 + mu) + mu log(1 + 1 / mu), and 2 ln 2 for mu = 1.

    Args:
        rewards: each (B,); the paper's have beta = 1.
        mu: generated answers for each human one (the paper's noise ratio), > 0. One is sampled here, so other values
            weight it.
    """
    log_mu = math.log(mu)
    return functional.softplus(log_mu - rewards.actual) + mu * functional.softplus(rewards.generated - log_mu)


def spin_loss(policy: AnswerLogprobs, reference: AnswerLogprobs, beta: float) -> Tensor:
    """SPIN objective (arXiv:2401.01335) with the logistic loss, mean over the B pairs; scalar ()."""
    return spin_losses(rewards(policy, reference, beta)).mean()


def opponent_logprobs(reference: AnswerLogprobs, base: AnswerLogprobs, base_weight: float) -> AnswerLogprobs:
    """Log-probabilities under alpha-SPIN's opponent (arXiv:2404.04291), pi_ref^(1 - alpha) * pi_base^alpha, not
    normalised.

    The regulariser KL(pi || pi_base) of the game makes this geometric mixture the opponent in place of the reference.
    Its normaliser depends on the prompt alone: it cancels in the margin, but not in each of the two rewards. Answers
    are still sampled from the reference.

    Args:
        reference: each (B,), under the policy that the iteration started from.
        base: each (B,), under the base model of the run.
        base_weight: alpha, in [0, 1]; 0 is SPIN, 1 is DPO against the base model.
    """
    return AnswerLogprobs(
        (1 - base_weight) * reference.actual + base_weight * base.actual,
        (1 - base_weight) * reference.generated + base_weight * base.generated,
    )


def per_token(logprobs: AnswerLogprobs, lengths: AnswerLengths) -> AnswerLogprobs:
    """Log-probabilities averaged over each answer's tokens, as in SimPO (arXiv:2405.14734)."""
    return AnswerLogprobs(logprobs.actual / lengths.actual, logprobs.generated / lengths.generated)


def pair_terms(
    policy: AnswerLogprobs, opponent: AnswerLogprobs, lengths: AnswerLengths, objective: Objective
) -> PairTerms:
    """Objective of each pair: the loss of its margin, or of its answers, plus `sft_weight` * -log pi(y | x) / |y|.

    The second term (arXiv:2404.19733) keeps up the likelihood of the human answer, which the margin alone lets fall as
    long as that of the generated answer falls faster.

    Args:
        policy: each (B,) float32, with gradient.
        opponent: the same under the reference, or as returned by `opponent_logprobs`; no gradient.
        lengths: tokens of both answers, each >= 1.
        objective: options of the iteration.
    """
    sft = -policy.actual / lengths.actual
    if objective.length_normalized:
        policy, opponent = per_token(policy, lengths), per_token(opponent, lengths)
    pair_rewards = rewards(policy, opponent, objective.beta)
    if objective.loss == "nce":
        losses = nce_losses(pair_rewards, objective.mu)
    elif objective.loss == "sft":
        losses = sft
    else:
        losses = spin_losses(pair_rewards, objective.loss, objective.label_smoothing)
    if objective.sft_weight:
        losses = losses + objective.sft_weight * sft
    return PairTerms(losses, pair_rewards, sft)


METRIC_SUMS = (
    "num_pairs",
    "loss",
    "acc",
    "rewards_actual",
    "rewards_generated",
    "rewards_squared",
    "generated_lengths",
    "sft",
)
"""Names of the sums that `metric_sums` returns, in order; they are additive over micro-batches and ranks."""


def metric_sums(terms: PairTerms, generated_lengths: Tensor, weights: Tensor) -> Tensor:
    """Sums over pairs from which `metrics_from_sums` computes a global batch's metrics.

    Args:
        terms: each (B,).
        generated_lengths: tokens of each generated answer, (B,).
        weights: 1 for a pair, 0 for one that only fills the batch, (B,) float32.

    Returns: (len(METRIC_SUMS),) float64, without gradient.
    """
    actual, generated = (reward.detach().double() for reward in terms.rewards)
    columns = (
        torch.ones_like(actual),
        terms.losses.detach().double(),
        (actual > generated).double(),
        actual,
        generated,
        actual.square() + generated.square(),
        generated_lengths.double(),
        terms.sft.detach().double(),
    )
    return torch.stack([(column * weights).sum() for column in columns])


def metrics_from_sums(sums: Tensor, *, with_sft: bool = False) -> dict[str, float]:
    """The metrics of a global batch, under NeMo's names; rewards include the factor beta, which NeMo's do not (see
    `log_ratios_from_rewards`).

    `rewards_all_std` is the sample deviation over the 2B rewards of both kinds of answer.

    Args:
        sums: see `metric_sums`.
        with_sft: whether to name `sft_loss`, the human answers' negative log-likelihood a token, mean over pairs.
    """
    value = dict(zip(METRIC_SUMS, sums.tolist(), strict=True))
    num_pairs = value["num_pairs"]
    num_rewards = 2 * num_pairs
    mean_all = (value["rewards_actual"] + value["rewards_generated"]) / num_rewards
    variance = max(value["rewards_squared"] - num_rewards * mean_all**2, 0.0) / max(num_rewards - 1, 1)
    return {
        "loss": value["loss"] / num_pairs,
        **({"sft_loss": value["sft"] / num_pairs} if with_sft else {}),
        "acc": value["acc"] / num_pairs,
        "rewards_actual_mean": value["rewards_actual"] / num_pairs,
        "rewards_generated_mean": value["rewards_generated"] / num_pairs,
        "rewards_all_mean": mean_all,
        "rewards_all_std": math.sqrt(variance),
        "avg_generated_lengths": value["generated_lengths"] / num_pairs,
    }


def log_ratios_from_rewards(metrics: Mapping[str, float], beta: float) -> dict[str, float]:
    """The metrics of rewards without the factor beta, as `log_ratios_*`: the values that NeMo-Aligner logs under the
    names `rewards_*`.

    Args:
        metrics: see `metrics_from_sums`.
        beta: weight of the log-ratio in these rewards.
    """
    return {
        f"log_ratios_{name.removeprefix('rewards_')}": value / beta
        for name, value in metrics.items()
        if name.startswith("rewards_")
    }
