from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_components.algorithm.batching import MicroBatch, permutation
from spin_components.algorithm.token_budget import Budget, PairLengths, budgeted_micro_batches

PROMPT, ACTUAL, GENERATED = [3, 1, 2, 4], [2, 6, 1, 1], [5, 1, 1, 2]
BOTH = [2 * p + a + g for p, a, g in zip(PROMPT, ACTUAL, GENERATED, strict=True)]  # 13, 9, 6, 11
LENGTHS = PairLengths(
    [p + a + g for p, a, g in zip(PROMPT, ACTUAL, GENERATED, strict=True)],
    PROMPT,
    [max(a, g) for a, g in zip(ACTUAL, GENERATED, strict=True)],
    [2] * 4,
)


def test_tokens_are_counted_as_they_are_computed() -> None:
    # packed: 3 + 2 + 5 and 1 + 6 + 1; padded: four rows of the prompt of 3 and the answer of 6
    assert (LENGTHS.packed([0]), LENGTHS.packed([1]), LENGTHS.packed([0, 1])) == (10, 8, 18)
    assert (LENGTHS.padded([0]), LENGTHS.padded([1]), LENGTHS.padded([0, 1])) == (16, 14, 36)
    human = PairLengths([p + a for p, a in zip(PROMPT, ACTUAL, strict=True)], PROMPT, ACTUAL, [1] * 4)
    assert (human.packed([0, 1]), human.padded([0, 1])) == (3 + 2 + 1 + 6, 2 * (3 + 6))
    # a third answer of 7 tokens to the first prompt: five rows of the prompt of 3 and the answer of 7
    triplets = PairLengths([3 + 2 + 5 + 7, 1 + 6 + 1], PROMPT[:2], [7, 6], [3, 2])
    assert (triplets.packed([0, 1]), triplets.padded([0, 1])) == (17 + 8, 5 * (3 + 7))


def test_a_batch_is_divided_by_hand() -> None:
    # by length: 2 (packed 4 tokens), 1 (8), 3 (7), 0 (10); 4 + 8 fit 15, with 7 more they do not, 7 + 10 do not
    budget = Budget(4, 15, LENGTHS.packed)
    alone = budgeted_micro_batches(range(4), BOTH, budget, rank=0, ranks=1, is_balanced=False)
    assert alone == [MicroBatch((2, 1), (1.0, 1.0)), MicroBatch((3,), (1.0,)), MicroBatch((0,), (1.0,))]
    # three micro-batches of 12, 7 and 10 tokens on two ranks: 12 and one of weight 0, of 4, against 7 and 10
    of_ranks = [
        budgeted_micro_batches(range(4), BOTH, budget, rank=rank, ranks=2, is_balanced=False) for rank in (0, 1)
    ]
    assert of_ranks == [[MicroBatch((2,), (0.0,)), alone[0]], [alone[1], alone[2]]]


def test_the_number_of_pairs_limits_what_the_tokens_allow() -> None:
    micros = budgeted_micro_batches(range(4), BOTH, Budget(3, 1000, LENGTHS.packed), rank=0, ranks=1, is_balanced=False)
    assert [micro.pairs for micro in micros] == [(2, 1, 3), (0,)]


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], PairLengths]:
    sizes = draw(st.lists(st.tuples(*[st.integers(1, 30)] * 3), min_size=1, max_size=24))
    prompt = [p for p, _, _ in sizes]
    once = [p + a + g for p, a, g in sizes]
    longest = [max(a, g) for _, a, g in sizes]
    return permutation(len(sizes), seed=len(sizes)), PairLengths(once, prompt, longest, [2] * len(sizes))


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("is_balanced", [True, False])
@given(drawn=batches(), tokens=st.integers(1, 300), size=st.integers(1, 6), ranks=st.integers(1, 4))
@settings(deadline=None)
def test_every_pair_counts_once_within_the_budget_on_as_many_micro_batches(
    drawn: tuple[list[int], PairLengths], tokens: int, size: int, ranks: int, is_balanced: bool, is_packed: bool
) -> None:
    batch, lengths = drawn
    count = lengths.packed if is_packed else lengths.padded
    by_rank = [
        budgeted_micro_batches(
            batch, lengths.once, Budget(size, tokens, count), rank=rank, ranks=ranks, is_balanced=is_balanced
        )
        for rank in range(ranks)
    ]
    assert len({len(micros) for micros in by_rank}) == 1  # DeepSpeed makes as many passes on every rank
    micros = [micro for each in by_rank for micro in each]
    rows = [row for micro in micros for row in zip(micro.pairs, micro.weights, strict=True)]
    assert Counter(pair for pair, weight in rows if weight == 1.0) == Counter(batch)
    assert {pair for pair, weight in rows if weight == 0.0} <= {min(batch, key=lambda i: (lengths.once[i], i))}
    assert all(1 <= len(micro.pairs) <= size for micro in micros)
    assert all(len(micro.pairs) == 1 or count(micro.pairs) <= tokens for micro in micros)


@given(drawn=batches(), tokens=st.integers(1, 300), size=st.integers(1, 6), ranks=st.integers(1, 4))
@settings(deadline=None)
def test_micro_batches_do_not_depend_on_the_number_of_ranks_unless_balanced(
    drawn: tuple[list[int], PairLengths], tokens: int, size: int, ranks: int
) -> None:
    batch, lengths = drawn
    budget = Budget(size, tokens, lengths.padded)
    micros = [
        micro
        for rank in range(ranks)
        for micro in budgeted_micro_batches(batch, lengths.once, budget, rank=rank, ranks=ranks, is_balanced=False)
    ]
    alone = budgeted_micro_batches(batch, lengths.once, budget, rank=0, ranks=1, is_balanced=False)
    assert Counter(micro for micro in micros if not micro.is_filling) == Counter(alone)
