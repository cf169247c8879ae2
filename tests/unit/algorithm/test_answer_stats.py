from __future__ import annotations

import pytest

from spin_components.algorithm.answer_stats import distinct, length_ratio, ngrams, repetition_rate, spin_margins


def test_ngrams_are_runs_of_tokens() -> None:
    assert ngrams([1, 2, 3], 2) == [(1, 2), (2, 3)]
    assert ngrams([1, 2], 3) == []


def test_repetition_is_counted_within_each_answer() -> None:
    # 1 2 3 4 1 2 3 4 has five 4-grams, 1234 twice: 1/5; 7 7 7 7 7 7 has three, all the same: 2/3; 5 6 7 8 has one
    answers = [[1, 2, 3, 4, 1, 2, 3, 4], [7, 7, 7, 7, 7, 7], [5, 6, 7, 8]]
    assert repetition_rate(answers) == pytest.approx((1 / 5 + 2 / 3 + 0) / 3)
    # the same answer again is no repetition within an answer, and one too short for a 4-gram does not count
    assert repetition_rate([[1, 2, 3, 4], [1, 2, 3, 4], [1]]) == 0
    assert repetition_rate([[1, 1, 1]]) == 0
    assert repetition_rate([[1, 1, 1]], n=2) == pytest.approx(1 / 2)


def test_distinct_ngrams_are_counted_over_all_answers() -> None:
    # tokens 1 2 1 and 2 3: {1, 2, 3} of five; pairs 12 21 and 23: all different
    assert distinct([[1, 2, 1], [2, 3]], 1) == 3 / 5
    assert distinct([[1, 2, 1], [2, 3]], 2) == 1
    assert distinct([[1, 2], [1, 2], [1, 2]], 2) == pytest.approx(1 / 3)
    assert distinct([[1]], 2) == 0


def test_length_ratio_divides_the_mean_lengths() -> None:
    assert length_ratio([[1] * 6, [1] * 2], [[1] * 3, [1] * 1]) == 2
    assert length_ratio([[1]], [[1, 2], [1, 2]]) == 0.5


def test_margins_by_hand() -> None:
    # 0.5 * ((-1 + 3) - (-6 + 5)) = 1.5, and 0.5 * ((-4 + 4) - (-2 + 3)) = -0.5
    assert spin_margins([-1, -4], [-3, -4], [-6, -2], [-5, -3], 0.5) == [1.5, -0.5]
