from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_components.algorithm.batching import (
    MicroBatch,
    derive_seed,
    form_batches,
    micro_batches,
    order_batches,
    permutation,
)


@given(st.integers(0, 200), st.integers(1, 32), st.integers(0, 2**31 - 1))
@settings(deadline=None)
def test_each_pair_is_in_exactly_one_batch(num_pairs: int, size: int, seed: int) -> None:
    batches = form_batches(num_pairs, size, seed)
    assert sorted(index for batch in batches for index in batch) == list(range(num_pairs))
    assert all(len(batch) == size for batch in batches[:-1])
    assert len(batches) == -(-num_pairs // size)


def test_the_last_batch_has_the_remaining_pairs() -> None:
    assert [len(batch) for batch in form_batches(11, 4, seed=3)] == [4, 4, 3]


def test_batches_and_their_order_are_functions_of_the_seed() -> None:
    assert form_batches(50, 8, seed=1) == form_batches(50, 8, seed=1)
    assert form_batches(50, 8, seed=1) != form_batches(50, 8, seed=2)
    assert order_batches(50, seed=1) == order_batches(50, seed=1)
    assert order_batches(50, seed=1) != order_batches(50, seed=2)


def test_the_order_is_the_same_in_every_release() -> None:
    # a resumed run relies on it: numpy's PCG64 at seed 0, and the first four bytes of sha256("0:order:1:2")
    assert permutation(8, seed=0) == [2, 4, 3, 6, 5, 0, 1, 7]
    assert derive_seed(0, "order", 1, 2) == 0x3779D366


def test_an_epoch_takes_every_batch_once_up_to_its_limit() -> None:
    whole = order_batches(7, seed=5)
    assert sorted(whole) == list(range(7))
    assert order_batches(7, seed=5, limit=2) == whole[:2]
    assert order_batches(7, seed=5, limit=100) == whole


def test_seeds_of_different_purposes_differ_and_are_in_range() -> None:
    seeds = [derive_seed(0, purpose, t, e) for purpose in ("order", "sample") for t in range(8) for e in range(8)]
    seeds += [derive_seed(1, "order", 0, 0), derive_seed(0), derive_seed(2**31 - 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_share_by_hand() -> None:
    # lengths sort the batch as 7 (2), 3 (4), 5 (8); one slot is filled with the shortest, 7, at weight 0
    lengths = {3: 4, 5: 8, 7: 2}
    as_list = [lengths.get(index, 0) for index in range(8)]
    shares = [micro_batches([3, 5, 7], as_list, micro_batch_size=2, rank=rank, ranks=2, num=1) for rank in (0, 1)]
    assert shares == [[MicroBatch((7, 7), (0.0, 1.0))], [MicroBatch((3, 5), (1.0, 1.0))]]


@st.composite
def shares(draw: st.DrawFn) -> tuple[int, int, int, int, list[int]]:
    """Micro-batch size, ranks, micro-batches a rank, pairs in the batch (odd ones too), lengths of 64 pairs."""
    micro_batch_size, ranks, num = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    num_pairs = draw(st.integers(1, micro_batch_size * ranks * num))
    return micro_batch_size, ranks, num, num_pairs, draw(st.lists(st.integers(1, 9), min_size=64, max_size=64))


@given(shares())
@settings(deadline=None)
def test_the_ranks_micro_batches_partition_the_batch(share: tuple[int, int, int, int, list[int]]) -> None:
    micro_batch_size, ranks, num, num_pairs, lengths = share
    batch = permutation(64, seed=0)[:num_pairs]
    by_rank = [
        micro_batches(batch, lengths, micro_batch_size=micro_batch_size, rank=rank, ranks=ranks, num=num)
        for rank in range(ranks)
    ]
    # ranks stay in step: as many micro-batches each, all of one size
    assert [len(rank_micros) for rank_micros in by_rank] == [num] * ranks
    micros = [micro for rank_micros in by_rank for micro in rank_micros]
    assert {(len(micro.pairs), len(micro.weights)) for micro in micros} == {(micro_batch_size, micro_batch_size)}
    # each pair of the batch counts once, filling never
    rows = [row for micro in micros for row in zip(micro.pairs, micro.weights, strict=True)]
    assert Counter(pair for pair, weight in rows if weight == 1.0) == Counter(batch)
    assert {pair for pair, weight in rows if weight == 0.0} <= {min(batch, key=lambda pair: (lengths[pair], pair))}
    assert {weight for _, weight in rows} <= {0.0, 1.0}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_micro_batches_do_not_depend_on_the_number_of_ranks(ranks: int) -> None:
    lengths = [(index * 7) % 13 + 1 for index in range(16)]
    batch = list(range(15))
    micros = [
        micro
        for rank in range(ranks)
        for micro in micro_batches(batch, lengths, micro_batch_size=2, rank=rank, ranks=ranks, num=8 // ranks)
    ]
    alone = micro_batches(batch, lengths, micro_batch_size=2, rank=0, ranks=1, num=8)
    assert Counter(micros) == Counter(alone)


def test_pairs_of_a_micro_batch_have_similar_lengths() -> None:
    lengths = [9, 1, 8, 2, 7, 3, 6, 4]
    micros = micro_batches(range(8), lengths, micro_batch_size=2, rank=0, ranks=1, num=4)
    assert [[lengths[pair] for pair in micro.pairs] for micro in micros] == [[1, 2], [3, 4], [6, 7], [8, 9]]
