"""How sure a difference of validation losses is: a paired bootstrap over the held-out answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spin_components.data.shards import AnswerLoss

LEVEL = 0.95
_FEWEST = 2
_RESAMPLES = 2000
_MOST_GROUPS = 2000
_SEED = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """val_loss of a policy less that of another, in nats a token; below 0 is better.

    Attributes:
        low: of the confidence interval.
        high: likewise.
        num_better: answers that the policy finds likelier than the other did, of `num_answers`.
    """

    mean: float
    low: float
    high: float
    num_better: int
    num_answers: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.high < 0 or self.low > 0


def paired_difference(
    base: Sequence[AnswerLoss], other: Sequence[AnswerLoss], confidence: float = LEVEL
) -> Difference | None:
    """Compare two policies on the same held-out answers.

    Answers are drawn anew, with replacement, `_RESAMPLES` times, both policies' losses of an answer together; the
    interval is between percentiles of (sum of nll differences) / (sum of tokens), which is what val_loss averages.
    More than `_MOST_GROUPS` answers are drawn in groups of neighbours, so that the cost has a bound. The seed is
    fixed: the same losses give the same interval.

    Args:
        base: losses of the model that the policy is held against.
        other: losses of the policy; answers that one of both lacks are left out.
        confidence: how often the interval is to hold the truth.

    Returns: None where they have fewer than two answers in common, for one tells nothing of how sure it is; or where
        a loss is not finite.
    """
    before = {loss.index: loss.nll for loss in base}
    common = sorted((loss for loss in other if loss.index in before), key=lambda loss: loss.index)
    nll = np.array([loss.nll - before[loss.index] for loss in common])
    if len(common) < _FEWEST or not np.isfinite(nll).all():
        return None
    tokens = np.array([loss.num_tokens for loss in common], dtype=np.float64)
    group = np.arange(len(common)) * min(len(common), _MOST_GROUPS) // len(common)
    grouped_nll, grouped_tokens = np.bincount(group, nll), np.bincount(group, tokens)
    draws = np.random.default_rng(_SEED).integers(0, len(grouped_nll), (_RESAMPLES, len(grouped_nll)))
    means = grouped_nll[draws].sum(1) / grouped_tokens[draws].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(nll.sum() / tokens.sum()), float(low), float(high), int((nll < 0).sum()), len(common))
