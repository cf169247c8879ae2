"""Confidence interval of a difference of validation losses, by a paired bootstrap over the held-out answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spin_components.data.shards import AnswerLoss

LEVEL = 0.95
_MIN_ANSWERS = 2
_NUM_RESAMPLES = 2000
_MAX_GROUPS = 2000
_SEED = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """Validation loss of a policy minus that of another model, in nats a token; negative is better.

    Attributes:
        mean: over all tokens.
        low: lower end of the confidence interval.
        high: upper end.
        num_better: number of answers with a lower loss under the policy, of `num_answers`.
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
    group = np.arange(len(common)) * min(len(common), _MAX_GROUPS) // len(common)
    grouped_nll, grouped_tokens = np.bincount(group, nll), np.bincount(group, tokens)
    draws = np.random.default_rng(_SEED).integers(0, len(grouped_nll), (_NUM_RESAMPLES, len(grouped_nll)))
    means = grouped_nll[draws].sum(1) / grouped_tokens[draws].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(nll.sum() / tokens.sum()), float(low), float(high), int((nll < 0).sum()), len(common))
