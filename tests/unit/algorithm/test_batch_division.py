"""How training divides global batches, and that scoring forms the same micro-batches from a shard's own pairs."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_components.algorithm.batch_division import BatchDivision
from spin_components.algorithm.batching import permutation
from spin_components.algorithm.token_budget import PairLengths
from spin_components.data.shards import Pair
from spin_components.ref_logprob.step import _micro_batches
from spin_components.settings.training import TrainingSettings

SHARD = 100
"""Index, among all pairs, of the first of the shard."""


def pair_of(index: int, prompt: int, actual: int, generated: int) -> Pair:
    return Pair(index, [1] * prompt, [2] * actual, [3] * generated, "stop")


def lengths_of(pairs: list[Pair]) -> PairLengths:
    return PairLengths(
        [len(pair.prompt_ids) + len(pair.actual_ids) + len(pair.generated_ids) for pair in pairs],
        [len(pair.prompt_ids) for pair in pairs],
        [max(len(pair.actual_ids), len(pair.generated_ids)) for pair in pairs],
        [2] * len(pairs),
    )


@pytest.mark.parametrize("tokens", [0, 40])
@pytest.mark.parametrize("is_packed", [True, False])
@given(
    sizes=st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=16),
    size=st.sampled_from([1, 2, 4]),
    ranks=st.sampled_from([1, 2, 4]),
)
@settings(deadline=None)
def test_scoring_forms_the_micro_batches_of_training(
    sizes: list[tuple[int, int, int]], size: int, ranks: int, is_packed: bool, tokens: int
) -> None:
    training = TrainingSettings(global_batch_size=16, micro_batch_size=size, micro_batch_tokens=tokens)
    shard = [pair_of(index, *each) for index, each in enumerate(sizes)]
    other = [pair_of(index, 4, 4, 4) for index in range(SHARD)]
    batch = permutation(len(shard), seed=1)
    division = BatchDivision(lengths_of([*other, *shard]), training, ranks, is_packed=is_packed)
    in_training = [
        tuple(i - SHARD for i in micro.pairs)
        for rank in range(ranks)
        for micro in division.of_rank([SHARD + i for i in batch], rank)
        if not micro.is_filling
    ]
    scored = _micro_batches({i: shard[i] for i in batch}, training, ranks, is_packed=is_packed)
    assert Counter(micro.pairs for micro in scored if not micro.is_filling) == Counter(in_training)
    weighted = [i for micro in scored for i, weight in zip(micro.pairs, micro.weights, strict=True) if weight]
    assert sorted(weighted) == sorted(batch)


def test_packed_ranks_have_as_many_tokens_and_padded_ones_pairs_of_a_length() -> None:
    pairs = [pair_of(index, 1, 1, size) for index, size in enumerate([1, 2, 7, 8])]
    training = TrainingSettings(global_batch_size=4, micro_batch_size=2)
    packed, padded = (
        [
            [
                micro.pairs
                for micro in BatchDivision(lengths_of(pairs), training, 2, is_packed=is_packed).of_rank(range(4), r)
            ]
            for r in (0, 1)
        ]
        for is_packed in (True, False)
    )
    assert sorted(sorted(micro) for (micro,) in packed) == [[0, 3], [1, 2]]
    assert padded == [[(0, 1)], [(2, 3)]]
