from __future__ import annotations

import pytest

from spin_components.algorithm.answer_stats import is_match
from spin_components.data.shards import GREEDY, SAMPLED, Prompt
from spin_components.engine.engine import Answer
from spin_components.settings.selection import SelectionSettings
from spin_components.validate.measures import length_warning, mean_measures, measure_answers
from support.bounds import gamma

WORDS = {1: "a", 2: "cat", 3: "sat", 4: "dog", 9: ""}
"""Text of each token; 9 ends an answer."""


def decode(ids: list[int]) -> str:
    return " ".join(WORDS[token] for token in ids if WORDS[token])


PROMPTS = [Prompt(4, [7], [1, 2, 3, 9], True), Prompt(6, [7], [4, 9], True)]
ANSWERS = [Answer([1, 2, 3, 9], "stop", -1.0), Answer([2, 2, 2, 2, 2, 2], "length", -2.0)]


def test_measures_by_hand() -> None:
    same, other = measure_answers(GREEDY, PROMPTS, ANSWERS, decode)
    assert (same.index, same.ended, same.repetition, same.chrf, same.match) == (4, True, 0.0, 100.0, True)
    assert (same.num_tokens, same.actual_tokens, same.generated_ids) == (4, 4, [1, 2, 3, 9])
    # three 4-grams, one of them distinct; no character n-gram of "dog" is in "cat cat ..."
    assert (other.index, other.ended, other.chrf, other.match) == (6, False, 0.0, False)
    assert other.repetition == pytest.approx(2 / 3, rel=gamma(4))


def test_means_by_hand() -> None:
    assert mean_measures(measure_answers(SAMPLED, PROMPTS, ANSWERS, decode)) == {
        "ended_share": 0.5,
        "chrf": 50.0,
        "match": 0.5,
    }
    # 10 tokens to 6; repetition (0 + 2/3) / 2; 5 distinct of 10 tokens; pairs: 3 and one of five
    greedy = mean_measures(measure_answers(GREEDY, PROMPTS, ANSWERS, decode))
    assert greedy == {
        "greedy_ended_share": 0.5,
        "greedy_chrf": 50.0,
        "greedy_match": 0.5,
        "greedy_length_ratio": 1.6667,
        "greedy_repetition_rate": 0.3333,
        "greedy_distinct_1": 0.4,
        "greedy_distinct_2": 0.5,
    }


def test_a_match_ignores_case_and_white_space_alone() -> None:
    assert is_match(" Yes,\n it  is", "yes, it is ")
    assert not is_match("yes it is", "yes, it is")


def test_a_base_model_whose_answers_are_too_long_or_short_is_warned_of() -> None:
    for ratio in (2.1, 0.4):
        warning = length_warning({"length_ratio": ratio}, SelectionSettings(), "the warm-up")
        assert f"the warm-up's own answers are {ratio:.2f} times as long as the human's" in warning
    assert not length_warning({"length_ratio": 2.0}, SelectionSettings(), "the warm-up")
    assert not length_warning({"length_ratio": 9.0}, SelectionSettings(max_length_ratio=0), "the warm-up")
    assert not length_warning({}, SelectionSettings(), "the warm-up")
