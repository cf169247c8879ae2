"""The SPIN objective and what is reported about it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

STEP_ZERO_LOSS = math.log(2.0)
STEP_ZERO_TOLERANCE = {"float32": 1e-5, "bf16": 2e-3}
"""How far from ln 2 the first global batch of an iteration may be, by compute precision; see `train_epoch.loop`."""


class AnswerLogprobs(NamedTuple):
    """log pi(answer | prompt) in nats, summed over answer tokens; each (B,) float32."""

    actual: Tensor
    generated: Tensor


class Rewards(NamedTuple):
    """beta * (log pi - log pi_ref) of each answer; each (B,) float32."""

    actual: Tensor
    generated: Tensor


def rewards(policy: AnswerLogprobs, reference: AnswerLogprobs, beta: float) -> Rewards:
    """Implicit rewards r(x, a) = beta * (log pi - log pi_ref), the terms of arXiv:2401.01335's objective.

    Args:
        policy: each (B,) float32, with gradient.
        reference: the same under the frozen reference; no gradient.
        beta: weight of the log-ratio (NeMo's `ref_policy_kl_penalty`), > 0.
    """
    return Rewards(beta * (policy.actual - reference.actual), beta * (policy.generated - reference.generated))


def spin_losses(rewards: Rewards) -> Tensor:
    """SPIN objective (arXiv:2401.01335), logistic loss: -log sigmoid(margin) of each pair; (B,) float32."""
    return functional.softplus(rewards.generated - rewards.actual)


def spin_loss(policy: AnswerLogprobs, reference: AnswerLogprobs, beta: float) -> Tensor:
    """Mean of `spin_losses` over the B pairs; scalar ()."""
    return spin_losses(rewards(policy, reference, beta)).mean()


METRIC_SUMS = (
    "num_pairs",
    "loss",
    "acc",
    "rewards_actual",
    "rewards_generated",
    "rewards_squared",
    "generated_lengths",
)
"""What `metric_sums` returns, in order; sums add up over micro-batches and ranks."""


def metric_sums(rewards: Rewards, generated_lengths: Tensor, weights: Tensor) -> Tensor:
    """Sums from which a global batch's metrics follow.

    Args:
        rewards: each (B,).
        generated_lengths: tokens of each generated answer, (B,).
        weights: 1 for a pair, 0 for filling, (B,) float32.

    Returns: (len(METRIC_SUMS),) float64, without gradient.
    """
    actual, generated, weight = (x.detach().double() for x in (rewards.actual, rewards.generated, weights))
    columns = (
        torch.ones_like(weight),
        functional.softplus(generated - actual),
        (actual > generated).double(),
        actual,
        generated,
        actual.square() + generated.square(),
        generated_lengths.double(),
    )
    return torch.stack([(column * weight).sum() for column in columns])


def metrics_from_sums(sums: Tensor) -> dict[str, float]:
    """The metrics of a global batch, under NeMo's names.

    `rewards_all_std` is the sample deviation over the 2B rewards of both kinds of answer.
    """
    value = dict(zip(METRIC_SUMS, sums.tolist(), strict=True))
    num_pairs = value["num_pairs"]
    num_rewards = 2 * num_pairs
    mean_all = (value["rewards_actual"] + value["rewards_generated"]) / num_rewards
    variance = max(value["rewards_squared"] - num_rewards * mean_all**2, 0.0) / max(num_rewards - 1, 1)
    return {
        "loss": value["loss"] / num_pairs,
        "acc": value["acc"] / num_pairs,
        "rewards_actual_mean": value["rewards_actual"] / num_pairs,
        "rewards_generated_mean": value["rewards_generated"] / num_pairs,
        "rewards_all_mean": mean_all,
        "rewards_all_std": math.sqrt(variance),
        "avg_generated_lengths": value["generated_lengths"] / num_pairs,
    }
