from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_components.algorithm.batching import GlobalBatches, balanced_micro_batches, deal, micro_batches, permutation


def test_items_are_dealt_by_hand() -> None:
    # 9, 8, 5 and 4 to two shares: 9 and 8 first, then 5 to the cheaper one, then 4 to the other: 13 and 13
    assert [share.tolist() for share in deal(np.array([4, 5, 8, 9]), 2)] == [[0, 3], [1, 2]]


def test_swaps_mend_what_dealing_the_longest_first_leaves() -> None:
    # dealt: 11 | 9, 7 to the 9 (16), 6 to the 11 (17), 5 to the 16 (21, full), 2 to the 17 (19); then 7 for 6: 20, 20
    assert [share.tolist() for share in deal(np.array([11, 9, 7, 6, 5, 2]), 2)] == [[0, 2, 5], [1, 3, 4]]


@given(st.integers(1, 6), st.lists(st.integers(0, 4000), min_size=1, max_size=8), st.integers(0, 99))
@settings(deadline=None)
def test_shares_partition_the_items_evenly(num: int, some: list[int], seed: int) -> None:
    costs = np.array([some[i % len(some)] for i in permutation(num * len(some), seed)])
    shares = deal(costs, num)
    assert sorted(item for share in shares for item in share.tolist()) == list(range(len(costs)))
    assert {len(share) for share in shares} == {len(some)}


@pytest.mark.parametrize(("micro_batch_size", "ranks"), [(8, 8), (1, 8), (4, 4), (2, 2), (4, 1)])
def test_ranks_have_the_same_tokens_within_two_percent(micro_batch_size: int, ranks: int) -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(6.8, 0.8, 64 * 20), 30, 4000).astype(np.int64)
    num, slowest, before = 64 // (micro_batch_size * ranks), 0.0, 0.0
    for batch in GlobalBatches(np.arange(len(lengths)), range(64, len(lengths) + 1, 64)):
        tokens = {
            form: [
                sum(int(lengths[list(micro.pairs)].sum()) for micro in form(
                    batch, lengths, micro_batch_size=micro_batch_size, rank=rank, ranks=ranks, num=num))
                for rank in range(ranks)
            ]
            for form in (micro_batches, balanced_micro_batches)
        }  # fmt: skip
        assert sum(tokens[micro_batches]) == sum(tokens[balanced_micro_batches])
        before = max(before, float(max(tokens[micro_batches]) / np.mean(tokens[micro_batches])))
        slowest = max(slowest, float(max(tokens[balanced_micro_batches]) / np.mean(tokens[balanced_micro_batches])))
    assert slowest <= 1.02
    assert ranks == 1 or slowest < before


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.data())
@settings(deadline=None)
def test_balanced_micro_batches_partition_the_batch(size: int, ranks: int, num: int, data: st.DataObject) -> None:
    num_pairs = data.draw(st.integers(1, size * ranks * num))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=64, max_size=64))
    batch = permutation(64, seed=1)[:num_pairs]
    by_rank = [
        balanced_micro_batches(batch, lengths, micro_batch_size=size, rank=rank, ranks=ranks, num=num)
        for rank in range(ranks)
    ]
    assert [len(micros) for micros in by_rank] == [num] * ranks  # ranks stay in step
    micros = [micro for rank_micros in by_rank for micro in rank_micros]
    assert {len(micro.pairs) for micro in micros} == {size}
    rows = [row for micro in micros for row in zip(micro.pairs, micro.weights, strict=True)]
    assert Counter(pair for pair, weight in rows if weight == 1.0) == Counter(batch)
    assert {weight for _, weight in rows} <= {0.0, 1.0}


def test_batches_are_taken_in_another_order() -> None:
    batches = GlobalBatches(np.array([5, 1, 0, 4, 2, 3]), [2, 4, 6])
    assert list(batches.ordered([2, 0])) == [(2, 3), (5, 1)]
    assert (batches[-1], len(batches.ordered([])), list(batches.ordered([]))) == ((2, 3), 0, [])
