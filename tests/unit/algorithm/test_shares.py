"""Division of work among processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spin_components.algorithm.shares import shares


def test_the_costliest_item_goes_to_the_share_with_the_least() -> None:
    # 9 | 7; 6 joins 7 (13); 5 joins 9 (14); 2 joins 13 (15)
    assert shares([2, 9, 5, 7, 6], 2) == [[1, 2], [0, 3, 4]]


def test_items_without_a_cost_are_divided_by_their_number() -> None:
    assert [len(share) for share in shares([0] * 6, 3)] == [2, 2, 2]


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 9))
def test_every_item_is_in_one_share_and_no_share_exceeds_the_rest_by_more_than_an_item(
    costs: list[int], num: int
) -> None:
    found = shares(costs, num)
    assert len(found) == num
    assert sorted(index for share in found for index in share) == list(range(len(costs)))
    totals = [sum(costs[index] for index in share) for share in found]
    assert max(totals) - min(totals) <= max(costs, default=0)
