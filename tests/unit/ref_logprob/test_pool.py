from __future__ import annotations

from collections.abc import Sequence

import pytest

from spin_components.data.pair_counts import PairCounts, add_up, in_words
from spin_components.data.shards import Pair
from spin_components.ref_logprob.pool import Hygiene, origins, pool_pairs

HYGIENE = Hygiene(frozenset({2}), drop_truncated=True)


def pair(index: int, origin: int, *generated: int, finish_reason: str = "stop") -> Pair:
    return Pair(index, [5], [7, 8, 2], list(generated or (index + 10, origin + 50, 2)), finish_reason, origin)


def keys(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    return [pair.key for pair in pairs]


@pytest.mark.parametrize(
    ("iteration", "history", "expected"),
    [(0, 1, [0]), (1, 1, [1, 0]), (3, 0, [3]), (3, 1, [3, 2]), (3, 2, [3, 2, 1]), (2, 32, [2, 1, 0])],
)
def test_history_is_of_the_iterations_before_newest_first(iteration: int, history: int, expected: list[int]) -> None:
    assert origins(iteration, history) == expected


def test_all_pairs_of_both_are_taken_and_counted_by_origin() -> None:
    pool = pool_pairs([pair(0, 1), pair(1, 1)], [pair(0, 0), pair(1, 0)], HYGIENE)
    assert keys(pool.pairs) == [(1, 0), (1, 1), (0, 0), (0, 1)]
    counts = pool.counts
    assert (counts.num_pairs, counts.num_history, counts.num_dropped) == (4, 2, 0)
    assert counts.num_by_origin == {1: 2, 0: 2}
    assert not any([*counts.dropped.values(), *counts.history_dropped.values()])


def test_an_answer_that_came_again_is_kept_where_it_is_newest() -> None:
    own = [pair(0, 2, 30, 2), pair(1, 2, 31, 2)]
    earlier = [pair(0, 1, 30, 2), pair(1, 1, 41, 2), pair(0, 0, 30), pair(1, 0, 41, 2), pair(2, 0, 30, 2)]
    pool = pool_pairs(own, earlier, HYGIENE)
    # 30 without EOS is another answer than 30 with it, and prompt 2 is another prompt
    assert keys(pool.pairs) == [(2, 0), (2, 1), (1, 1), (0, 0), (0, 2)]
    assert pool.counts.history_dropped["duplicate"] == 2
    assert pool.counts.num_by_origin == {2: 2, 1: 1, 0: 2}


def test_each_pair_is_used_or_dropped_for_one_cause() -> None:
    own = [pair(0, 1, 7, 8, 2), pair(1, 1, 2), pair(2, 1, 9, finish_reason="length"), pair(3, 1)]
    earlier = [pair(0, 0, 7, 8, 2), pair(1, 0, 2), pair(2, 0), pair(3, 0, 13, 51, 2)]  # the last came again in 1
    counts = pool_pairs(own, earlier, HYGIENE).counts
    none = {"near_identical": 0, "length_ratio": 0}
    assert counts.dropped == {"empty": 1, "identical": 1, "truncated": 1, **none}
    assert counts.history_dropped == {
        "empty": 1,
        "identical": 1,
        "truncated": 0,
        **none,
        "duplicate": 1,
        "not_drawn": 0,
    }
    assert (counts.num_pairs, counts.num_history, counts.num_dropped) == (2, 1, 3)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 5), (1.0, 10), (2.0, 20), (3.5, 30), ("all", 30), (0.01, 0)])
def test_the_ratio_is_of_older_pairs_to_the_newest(ratio: float, expected: int) -> None:
    own = [pair(index, 2) for index in range(10)] + [pair(10, 2, 2)]  # the empty one does not count
    earlier = [pair(index, origin) for origin in (1, 0) for index in range(15)]
    counts = pool_pairs(own, earlier, HYGIENE, history_ratio=ratio).counts
    assert counts.num_history == expected
    assert counts.history_dropped["not_drawn"] == 30 - expected


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    own = [pair(index, 1) for index in range(40)]
    earlier = [pair(index, 0) for index in range(40)]
    drawn = [keys(pool_pairs(own, earlier, HYGIENE, history_ratio=0.5, seed=seed).pairs) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(drawn[0], key=lambda key: (-key[0], key[1]))
    assert len(set(drawn[0])) == 60


def test_shards_add_up() -> None:
    parts = [
        PairCounts(num_pairs=5, num_history=2, num_by_origin={1: 3, 0: 2}, num_dropped=1, dropped={"empty": 1}),
        PairCounts(num_pairs=4, num_by_origin={1: 4}, num_dropped=2, dropped={"empty": 1, "identical": 1}),
    ]
    total = add_up(parts)
    assert (total.num_pairs, total.num_history, total.num_dropped) == (9, 2, 3)
    assert total.num_by_origin == {1: 7, 0: 2}
    assert total.dropped == {"empty": 2, "identical": 1}
    assert PairCounts.model_validate(total.model_dump(mode="json")) == total


def test_causes_are_told_in_words_where_there_are_any() -> None:
    words = in_words({"empty": 1200, "identical": 0, "truncated": 3})
    assert words == "1,200 empty, 3 cut (generation.on_truncated)"
    assert in_words({"empty": 0}) == in_words({}) == ""


def test_a_pool_can_be_empty() -> None:
    pool = pool_pairs([pair(0, 1, 2)], [pair(0, 0, 2)], HYGIENE)
    assert (len(pool.pairs), pool.counts.num_pairs, pool.counts.num_dropped) == (0, 0, 1)
    assert list(pool_pairs([], [], HYGIENE).pairs) == []
