from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_components.data.shards import Pair
from spin_components.ref_logprob.pool import Hygiene, are_alike
from support.small import small_settings

EOS = 2
TEN = [11, 12, 13, 14, 15, 16, 17, 18, 19, EOS]


def pair(actual: list[int], generated: list[int], finish_reason: str = "stop") -> Pair:
    return Pair(0, [5, 6], actual, generated, finish_reason)


STRICT = Hygiene(frozenset({EOS}), max_similarity=0.8, max_length_ratio=2.0, drop_truncated=True)
LENIENT = Hygiene(frozenset({EOS}))


@pytest.mark.parametrize(
    ("generated", "finish_reason", "strict", "lenient"),
    [
        ([], "length", "empty", "empty"),
        ([EOS], "stop", "empty", "empty"),
        (TEN, "stop", "identical", "identical"),
        ([31, 32, 33, 34, 35], "length", "truncated", None),
        ([31, 32, 33, 34, 35], "stop_string", None, None),  # a stop string ends an answer as EOS does
        ([11, 12, 99, 14, 15, 98, 17, 18, 19, EOS], "stop", "near_identical", None),  # 2 of 10 changed: 0.8
        ([11, 12, 99, 14, 15, 98, 17, 97, 19, EOS], "stop", None, None),  # 3 of 10: 0.7
        ([11, 12, 13, 14, 15, 16, 17, 18, 19], "length", "truncated", None),  # alike too, but cut comes first
        ([31, 32, 33, EOS], "stop", "length_ratio", None),  # 10 to 4
        ([31, 32, 33, 34, EOS], "stop", None, None),  # 10 to 5 is 2, and not more
        ([31] * 20, "stop", None, None),
        ([31] * 21, "stop", "length_ratio", None),
    ],
)
def test_the_first_cause_that_holds_is_the_one(
    generated: list[int], finish_reason: str, strict: str | None, lenient: str | None
) -> None:
    assert STRICT.cause(pair(TEN, generated, finish_reason)) == strict
    assert LENIENT.cause(pair(TEN, generated, finish_reason)) == lenient


def test_a_human_answer_of_no_token_is_endlessly_shorter() -> None:
    assert STRICT.cause(pair([], [31])) == "length_ratio"


def test_settings_say_what_is_dropped() -> None:
    settings = small_settings(
        "run", "model", "data", spin={"max_similarity": 0.9, "max_length_ratio": 3}, generation={"on_truncated": "drop"}
    )
    assert Hygiene.of(settings, [EOS]) == Hygiene(frozenset({EOS}), 0.9, 3.0, True)
    assert Hygiene.of(small_settings("run", "model", "data"), [EOS]) == LENIENT


@pytest.mark.parametrize(("changed", "similarity"), [(1, 0.9), (3, 0.7), (9, 0.1)])
def test_a_similarity_that_is_met_exactly_counts_whatever_floats_make_of_it(changed: int, similarity: float) -> None:
    # (1 - 0.9) * 10 is 0.9999999999999998, and one edit must still count as 0.9
    other = [100 + token if place < changed else token for place, token in enumerate(TEN)]
    assert are_alike(TEN, other, similarity)
    assert not are_alike(TEN, other, similarity + 0.01)


def distance(one: list[int], other: list[int]) -> int:
    """Levenshtein's, by its definition."""
    row = list(range(len(other) + 1))
    for place, token in enumerate(one, start=1):
        before, row = row, [place]
        for column, against in enumerate(other, start=1):
            row.append(min(before[column] + 1, row[-1] + 1, before[column - 1] + (token != against)))
    return row[-1]


TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(TOKENS, TOKENS, st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_answers_are_alike_by_their_edit_distance(one: list[int], other: list[int], similarity: float) -> None:
    assert are_alike(one, other, similarity) == (1 - distance(one, other) / max(len(one), len(other)) >= similarity)
