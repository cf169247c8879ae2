"""Confidence intervals of differences of validation losses and of measures, by a paired bootstrap where that can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from spin_components.data.shards import AnswerLoss
from spin_components.settings.selection import MIN_MEASURED

LEVEL = 0.95
_MIN_ANSWERS = 2
_NUM_RESAMPLES = 2000
_MAX_GROUPS = 2000
_SEED = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """Validation loss of a policy minus that of another model, in nats a token, where negative is better; or the
    change of a measure of answers.

    Attributes:
        mean: over all tokens, or over the answers.
        low: lower end of the confidence interval.
        high: upper end.
        num_better: number of answers with a lower loss under the policy, or a higher measure, of `num_answers`.
    """

    mean: float
    low: float
    high: float
    num_better: int
    num_answers: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.high < 0 or self.low > 0


class UnpairedDifference(Difference):
    """The change of a measure whose interval is that of two independent values with standard errors.

    `num_better` is not known, and 0; `num_answers` is the number of documents.
    """

    __slots__ = ()


def unpaired_change(
    before: tuple[float, float], after: tuple[float, float], num: int, confidence: float = LEVEL
) -> UnpairedDifference:
    """Compare two values by their standard errors: z sqrt(a^2 + b^2) is half the interval's width.

    The models answer the same documents, which makes their errors alike: this interval is wider than a paired one.

    Args:
        before: value of the model to compare with, and its standard error.
        after: the same of the policy.
        num: of documents.
        confidence: level of the interval, in (0, 1).
    """
    mean = after[0] - before[0]
    half = NormalDist().inv_cdf((1 + confidence) / 2) * (before[1] ** 2 + after[1] ** 2) ** 0.5
    return UnpairedDifference(mean, mean - half, mean + half, 0, num)


def paired_difference(
    base: Sequence[AnswerLoss], other: Sequence[AnswerLoss], confidence: float = LEVEL
) -> Difference | None:
    """Compare the losses of two models on the same held-out answers by a paired percentile bootstrap.

    Answers are resampled with replacement `_NUM_RESAMPLES` times, both models' losses of an answer together. The
    statistic is (sum of nll differences) / (sum of tokens), as in val_loss. To bound the cost, more than `_MAX_GROUPS`
    answers are resampled in groups of neighbours. The seed is fixed: the same losses give the same interval.

    Args:
        base: losses of the model to compare with.
        other: losses of the policy; answers that only one of the two has are ignored.
        confidence: level of the interval, in (0, 1).

    Returns: None with fewer than two answers in common, or where a loss is not finite.
    """
    base_nll = {loss.index: loss.nll for loss in base}
    common = sorted((loss for loss in other if loss.index in base_nll), key=lambda loss: loss.index)
    nll = np.array([loss.nll - base_nll[loss.index] for loss in common])
    if len(common) < _MIN_ANSWERS or not np.isfinite(nll).all():
        return None
    tokens = np.array([loss.num_tokens for loss in common], dtype=np.float64)
    return Difference(*_interval(nll, tokens, confidence), int((nll < 0).sum()), len(common))


def paired_change(
    before: Mapping[int, float], after: Mapping[int, float], confidence: float = LEVEL
) -> Difference | None:
    """Compare a measure of two models' answers to the same prompts, by the same bootstrap; every answer counts alike.

    Args:
        before: the measure of each answer of the model to compare with, by the prompt's index.
        after: the same of the policy; prompts that only one of the two has are ignored.
        confidence: level of the interval, in (0, 1).

    Returns: the change of the mean, with the number of answers whose measure rose as `num_better`; None with fewer
        than `MIN_MEASURED` answers in common.
    """
    common = sorted(before.keys() & after.keys())
    if len(common) < MIN_MEASURED:
        return None
    changes = np.array([after[index] - before[index] for index in common], dtype=np.float64)
    interval = _interval(changes, np.ones(len(common)), confidence)
    return Difference(*interval, int((changes > 0).sum()), len(common))


def _interval(
    values: NDArray[np.float64], weights: NDArray[np.float64], confidence: float
) -> tuple[float, float, float]:
    """Sum of values by sum of weights, with the ends of its percentile interval."""
    group = np.arange(len(values)) * min(len(values), _MAX_GROUPS) // len(values)
    grouped_values, grouped_weights = np.bincount(group, values), np.bincount(group, weights)
    draws = np.random.default_rng(_SEED).integers(0, len(grouped_values), (_NUM_RESAMPLES, len(grouped_values)))
    means = grouped_values[draws].sum(1) / grouped_weights[draws].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(values.sum() / weights.sum()), float(low), float(high)
