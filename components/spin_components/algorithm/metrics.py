"""Metrics of a global batch, from sums that are additive over micro-batches and ranks.

Shapes: B pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from spin_components.algorithm.loss import PairTerms

METRIC_SUMS = (
    "num_pairs",
    "loss",
    "acc",
    "rewards_actual",
    "rewards_generated",
    "rewards_squared",
    "generated_lengths",
    "sft",
    "current_advantage",
    "current_acc",
    "num_triplets",
    "historical_advantage",
    "historical_acc",
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
        *_advantage_columns(terms),
    )
    return torch.stack([(column * weights).sum() for column in columns])


def _advantage_columns(terms: PairTerms) -> tuple[Tensor, ...]:
    """The last five columns of `METRIC_SUMS`, zeros where the loss has no advantages; each (B,) float64."""
    if terms.advantages is None:
        return (torch.zeros_like(terms.losses, dtype=torch.float64),) * 5
    current, historical, is_triplet = (each.detach().double() for each in terms.advantages)
    return current, (current > 0).double(), is_triplet, historical, (historical > 0).double()


def metrics_from_sums(sums: Tensor, *, with_sft: bool = False, with_advantages: bool = False) -> dict[str, float]:
    """The metrics of a global batch, under NeMo's names; rewards include the factor beta, which NeMo's do not (see
    `log_ratios_from_rewards`).

    `rewards_all_std` is the sample deviation over the 2B rewards of both kinds of answer.

    Args:
        sums: see `metric_sums`.
        with_sft: whether to name `sft_loss`, the human answers' negative log-likelihood a token, mean over pairs.
        with_advantages: whether to name those of the loss "triplet", see `_advantages`.
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
        **(_advantages(value) if with_advantages else {}),
    }


def _advantages(value: Mapping[str, float]) -> dict[str, float]:
    """T-SPIN's advantages (`algorithm.loss.advantages`), means over pairs, and the shares that are above 0.

    The historical ones are over the pairs with a proto answer, and left out where no pair of the batch has one.
    """
    metrics = {
        "current_advantage_mean": value["current_advantage"] / value["num_pairs"],
        "current_acc": value["current_acc"] / value["num_pairs"],
    }
    if num_triplets := value["num_triplets"]:
        metrics["historical_advantage_mean"] = value["historical_advantage"] / num_triplets
        metrics["historical_acc"] = value["historical_acc"] / num_triplets
    return metrics


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
