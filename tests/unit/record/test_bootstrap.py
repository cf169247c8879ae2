from __future__ import annotations

import numpy as np
import pytest
import torch

from spin_components.data.shards import AnswerLoss
from spin_components.record.bootstrap import Difference, paired_change, paired_difference
from support import bounds


def losses(*rows: tuple[int, float, int]) -> list[AnswerLoss]:
    return [AnswerLoss(*row) for row in rows]


def test_the_mean_is_over_tokens_as_in_val_loss() -> None:
    base = losses((0, 6.0, 3), (1, 2.0, 1))
    policy = losses((0, 3.0, 3), (1, 3.0, 1))
    difference = paired_difference(base, policy)
    assert difference is not None
    # (3 + 3) / 4 - (6 + 2) / 4
    assert difference.mean == -0.5
    # a draw is twice the first answer (-1), both (-0.5), or twice the second (+1)
    assert (difference.low, difference.high) == (-1.0, 1.0)
    assert not difference.is_clear
    assert (difference.num_better, difference.num_answers) == (1, 2)


def test_equal_differences_give_an_interval_of_width_zero() -> None:
    base = losses(*((index, 2.0 * index, 2) for index in range(1, 30)))
    policy = losses(*((index, 2.0 * index + 0.5, 2) for index in range(1, 30)))
    assert paired_difference(base, policy) == Difference(0.25, 0.25, 0.25, 0, 29)


def test_answers_are_paired_by_index_in_any_order() -> None:
    base = losses((7, 5.0, 1), (3, 1.0, 1), (9, 100.0, 1))
    policy = losses((3, 2.0, 1), (7, 7.0, 1))
    difference = paired_difference(base, policy)
    assert difference is not None
    assert (difference.mean, difference.num_answers) == (1.5, 2)
    assert paired_difference(base, losses((4, 1.0, 1))) is None
    assert paired_difference(base, losses((3, 1.0, 1))) is None, "one answer has no spread"


def test_a_loss_that_is_not_finite_gives_no_interval() -> None:
    base = losses((0, 6.0, 3), (1, 2.0, 1))
    assert paired_difference(base, losses((0, 6.0, 3), (1, float("nan"), 1))) is None
    assert paired_difference(base, losses((0, float("inf"), 3), (1, 2.0, 1))) is None


def test_less_confidence_gives_a_narrower_interval() -> None:
    rng = np.random.default_rng(4)
    base = losses(*((index, 4.0, 1) for index in range(200)))
    policy = losses(*((index, 4.0 + float(noise), 1) for index, noise in enumerate(rng.normal(0, 1, 200))))
    wide, narrow = paired_difference(base, policy), paired_difference(base, policy, 0.8)
    assert wide is not None
    assert narrow is not None
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_the_interval_covers_the_true_mean_at_its_confidence_level() -> None:
    # normal differences of mean 0.1: of 200 samples about 95 % should give an interval with 0.1 inside
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        base = losses(*((index, 10.0, 1) for index in range(60)))
        policy = losses(*((index, 10.1 + noise, 1) for index, noise in enumerate(rng.normal(0, 0.5, 60))))
        difference = paired_difference(base, policy)
        assert difference is not None
        hits += difference.low <= 0.1 <= difference.high
    assert 180 <= hits <= 198


def test_the_same_losses_give_the_same_interval() -> None:
    rng = np.random.default_rng(2)
    base = losses(*((index, value, 3) for index, value in enumerate(rng.normal(5, 1, 40))))
    policy = losses(*((index, value, 3) for index, value in enumerate(rng.normal(5, 1, 40))))
    assert paired_difference(base, policy) == paired_difference(base, policy)


def test_grouped_resampling_gives_the_width_of_the_normal_approximation() -> None:
    num = 30_000
    noise = np.random.default_rng(3).normal(-0.2, 1.0, num)
    base = losses(*((index, 4.0, 1) for index in range(num)))
    policy = losses(*((index, 4.0 + float(value), 1) for index, value in enumerate(noise)))
    difference = paired_difference(base, policy)
    assert difference is not None
    assert difference.mean == pytest.approx(noise.mean(), abs=bounds.of_sum([4.0 + 6.0] * num, torch.float64) / num)
    # 2 * 1.96 standard errors of a mean of 30,000, as 1,000 draws tell them
    assert difference.high - difference.low == pytest.approx(2 * 1.96 / num**0.5, rel=0.1)


def test_a_change_of_a_measure_is_its_mean_over_the_answers_that_both_have() -> None:
    before = dict.fromkeys(range(10), 0.5)
    after = dict.fromkeys(range(1, 11), 0.75)
    assert paired_change(before, after) == Difference(0.25, 0.25, 0.25, 9, 9)
    assert paired_change(before, dict.fromkeys(range(7), 0.75)) is None  # fewer than 8


def test_an_interval_of_a_measure_holds_the_change_and_widens_with_confidence() -> None:
    before = dict.fromkeys(range(16), 0.0)
    after = {index: float(index % 4 == 0) - float(index % 8 == 1) for index in range(16)}
    narrow, wide = (paired_change(before, after, confidence) for confidence in (0.5, 0.95))
    assert narrow is not None and wide is not None
    # four rose by 1, two fell by 1
    assert (narrow.mean, narrow.num_better, narrow.num_answers) == (2 / 16, 4, 16)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
