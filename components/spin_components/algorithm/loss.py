"""The SPIN objective and its variants.

Shapes: B pairs.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

STEP_ZERO_LOSS = math.log(2.0)
STEP_ZERO_TOLERANCE = {"float32": 1e-5, "bf16": 2e-3}
"""Allowed deviation of an iteration's first loss from its expected value, by compute precision; relative where the
expected value is above 1. See `training.train_step`."""

Loss = Literal["logistic", "hinge", "correlation", "least_squares", "nce", "triplet", "sft"]


class AnswerLogprobs(NamedTuple):
    """log pi(answer | prompt) in nats, summed over answer tokens; each (B,) float32.

    Attributes:
        proto: of the initial policy's answers, see `advantages`; 0 for a pair that has none, None where no pair has.
    """

    actual: Tensor
    generated: Tensor
    proto: Tensor | None = None


class AnswerLengths(NamedTuple):
    """Tokens of each answer; each (B,).

    Attributes:
        proto: of the initial policy's answers; 0 for a pair that has none, None where no pair has.
    """

    actual: Tensor
    generated: Tensor
    proto: Tensor | None = None


class Rewards(NamedTuple):
    """beta * (log pi - log pi_ref) of each answer, where pi_ref is the reference or the opponent of
    `opponent_logprobs`; (B,) float32."""

    actual: Tensor
    generated: Tensor


class Advantages(NamedTuple):
    """Differences of T-SPIN's rewards between the answers of a triplet, see `advantages`; each (B,).

    Attributes:
        current: of the human answer over the generated one, float32.
        historical: of the generated answer over the proto answer, float32; 0 for a pair without a proto answer.
        is_triplet: whether the pair has a proto answer, bool.
    """

    current: Tensor
    historical: Tensor
    is_triplet: Tensor


class Objective(NamedTuple):
    """Options of the training objective; all defaults are the paper's.

    Attributes:
        beta: weight of the log-ratio (NeMo's `ref_policy_kl_penalty`), > 0.
        loss: loss function of the margin, see `spin_losses`; of each answer alone, see `nce_losses`; of the advantages
            among three answers, see `triplet_losses`; or `sft`, the human answer's negative log-likelihood a token,
            without self-play.
        label_smoothing: see `spin_losses`.
        length_normalized: whether rewards use log-probabilities averaged over tokens, see `per_token`.
        sft_weight: weight of the human answer's negative log-likelihood a token, see `pair_terms`.
        base_weight: weight of the base model in the opponent, see `opponent_logprobs`.
        mu: noise ratio of the loss "nce", see `nce_losses`.
        alpha: factor of the rewards of the loss "triplet", see `advantages`.
        history_weight: weight of the historical advantage in the loss "triplet", see `triplet_losses`.
    """

    beta: float
    loss: Loss = "logistic"
    label_smoothing: float = 0.0
    length_normalized: bool = False
    sft_weight: float = 0.0
    base_weight: float = 0.0
    mu: float = 1.0
    alpha: float = 1.0
    history_weight: float = 0.1

    @property
    def begins_at_ln_2(self) -> bool:
        """Whether the loss is ln 2 for any pairs when the policy equals the reference."""
        return self.loss == "logistic" and not self.sft_weight and not self.base_weight

    @property
    def step_zero_scale(self) -> float:
        """The least factor of `STEP_ZERO_TOLERANCE`, which was measured with a loss that changes by 0.1 a nat.

        That is the slope of SPIN's logistic loss where policy and reference agree, beta / 2, for beta = 0.2; the same
        rounding moves it in proportion to beta. T-SPIN's loss changes by up to alpha a nat.
        """
        if self.length_normalized:
            return 1.0
        return 10 * self.alpha if self.loss == "triplet" else max(1.0, self.beta / 0.2)


class PairTerms(NamedTuple):
    """Terms of the objective for each pair; tensors (B,) float32.

    Attributes:
        losses: the quantity to minimise.
        rewards: implicit rewards of both answers.
        sft: the human answer's negative log-likelihood a token, unweighted.
        advantages: those of the loss "triplet"; None with another loss.
    """

    losses: Tensor
    rewards: Rewards
    sft: Tensor
    advantages: Advantages | None = None


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
        loss: name of the loss function; not "nce", "triplet" or "sft", which have no such margin.
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


def advantages(policy: AnswerLogprobs, lengths: AnswerLengths, alpha: float = 1.0) -> Advantages:
    """Advantages of T-SPIN (arXiv:2601.08198, section 3), differences of the reward r(x, z) = alpha log pi(z | x).

    The reward has no reference policy. The current advantage is r(x, y) - r(x, y'), of the human answer over the
    generated one. The historical advantage is r(x, y') - r(x, y0), of the generated answer over the proto-synthetic
    one, y0, which the policy that iteration 0 started from gave.

    Args:
        policy: each (B,) float32, with gradient; sums, or per token.
        lengths: tokens of the answers; a proto answer of 0 tokens is none.
        alpha: weight of the entropy regulariser of the paper's game, > 0.
    """
    current = alpha * (policy.actual - policy.generated)
    if policy.proto is None or lengths.proto is None:
        return Advantages(current, torch.zeros_like(current), torch.zeros_like(current, dtype=torch.bool))
    is_triplet = lengths.proto > 0
    historical = torch.where(is_triplet, alpha * (policy.generated - policy.proto), 0.0)
    return Advantages(current, historical, is_triplet)


def triplet_losses(advantages: Advantages, history_weight: float = 0.1) -> Tensor:
    """T-SPIN's loss of each triplet (arXiv:2601.08198, equation 7); (B,) float32.

    With l(z) = log(1 + e^-z) it is l(current advantage) + beta l(historical advantage). The second term is left out
    for a pair without a proto answer, as in all of iteration 0, where the paper's beta is 0.

    Args:
        advantages: each (B,).
        history_weight: the paper's beta, >= 0; not the beta of `rewards`.
    """
    losses = functional.softplus(-advantages.current)
    if not history_weight:
        return losses
    historical = history_weight * functional.softplus(-advantages.historical)
    return losses + torch.where(advantages.is_triplet, historical, 0.0)


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
    proto = None
    if logprobs.proto is not None and lengths.proto is not None:
        proto = logprobs.proto / lengths.proto.clamp(min=1)
    return AnswerLogprobs(logprobs.actual / lengths.actual, logprobs.generated / lengths.generated, proto)


def pair_terms(
    policy: AnswerLogprobs, opponent: AnswerLogprobs, lengths: AnswerLengths, objective: Objective
) -> PairTerms:
    """Objective of each pair: the loss of its margin, or of its answers, plus `sft_weight` * -log pi(y | x) / |y|.

    The rewards are those against the opponent with every loss, also where, as in "triplet", the loss does not use them.

    The second term (arXiv:2404.19733) keeps up the likelihood of the human answer, which the margin alone lets fall as
    long as that of the generated answer falls faster.

    Args:
        policy: each (B,) float32, with gradient.
        opponent: the same under the reference, or as returned by `opponent_logprobs`; no gradient.
        lengths: tokens of the answers, each >= 1 but for proto answers.
        objective: options of the iteration.
    """
    sft = -policy.actual / lengths.actual
    if objective.length_normalized:
        policy, opponent = per_token(policy, lengths), per_token(opponent, lengths)
    pair_rewards = rewards(policy, opponent, objective.beta)
    among_three = advantages(policy, lengths, objective.alpha) if objective.loss == "triplet" else None
    if among_three is not None:
        losses = triplet_losses(among_three, objective.history_weight)
    elif objective.loss == "nce":
        losses = nce_losses(pair_rewards, objective.mu)
    elif objective.loss == "sft":
        losses = sft
    else:
        losses = spin_losses(pair_rewards, objective.loss, objective.label_smoothing)
    if objective.sft_weight:
        losses = losses + objective.sft_weight * sft
    return PairTerms(losses, pair_rewards, sft, among_three)
