from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_components.algorithm.attention.segments import key_blocks, segments, token_parts

LENGTHS = [[3, 2, 1], [1, 2, 0], [2, 1, 2, 3]]
# tokens: 0 1 2 | 3 4 | 5 || 6 | 7 8 || 9 10 | 11 | 12 13 | 14 15 16

lengths = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3)), min_size=1, max_size=4
).map(lambda groups: [[prompt, *answers] for prompt, answers in groups])


def test_segments_by_hand() -> None:
    found = segments(LENGTHS)
    # prompt and first answer; then each further answer, whose keys begin with those of its prompt
    assert found.query_ends == [0, 5, 6, 9, 12, 14, 17]
    assert found.key_ends == [0, 5, 9, 12, 15, 19, 24]
    assert found.key_rows == [
        *(0, 1, 2, 3, 4),
        *(0, 1, 2, 5),
        *(6, 7, 8),
        *(9, 10, 11),
        *(9, 10, 12, 13),
        *(9, 10, 14, 15, 16),
    ]
    assert (found.max_queries, found.max_keys) == (5, 5)


def test_prompts_alone_are_a_segment_each() -> None:
    found = segments([[4, 0], [1, 0]])
    assert found == ([0, 1, 2, 3, 4], [0, 4, 5], [0, 4, 5])


def test_parts_by_hand() -> None:
    found = token_parts([[2, 1, 2], [1, 0, 3]])
    assert found.part == [0, 0, 1, 2, 2, 3, 5, 5, 5]  # 4 is the empty answer
    assert found.prompt == [0, 0, 0, 0, 0, 3, 3, 3, 3]
    assert found.position == [0, 1, 2, 2, 3, 0, 1, 2, 3]


def test_key_blocks_by_hand() -> None:
    # blocks of 4 tokens: 0 … 3, 4 … 7, 8 … 11; a prompt of 6, answers of 2 and 3
    assert key_blocks([[6, 2, 3]], None, 4) == [[0], [0, 1], [0, 1, 2]]
    # two tokens each: the answer at 8 … 10 sees token 5 of its prompt, no more of it
    assert key_blocks([[6, 2, 3]], 2, 4) == [[0], [0, 1], [1, 2]]
    # a group by itself sees no block of the one before
    assert key_blocks([[4, 4], [3, 1]], None, 4) == [[0], [0, 1], [2]]


def allowed(groups: list[list[int]], window: int | None) -> torch.Tensor:
    """Which key each query attends to, token by token, from the definition."""
    owners = []  # group, answer (0: the prompt), position
    for group, (prompt, *answers) in enumerate(groups):
        owners += [(group, 0, place) for place in range(prompt)]
        for answer, length in enumerate(answers, start=1):
            owners += [(group, answer, prompt + place) for place in range(length)]
    return torch.tensor(
        [
            [
                group == other
                and source in (0, answer)
                and place <= position
                and (window is None or position - place < window)
                for other, source, place in owners
            ]
            for group, answer, position in owners
        ]
    )


@given(groups=lengths)
@settings(deadline=None)
def test_segments_attend_to_what_the_definition_allows(groups: list[list[int]]) -> None:
    found, expected = segments(groups), allowed(groups, None)
    assert found.query_ends[-1] == len(expected)
    spans = zip(found.query_ends, found.query_ends[1:], found.key_ends, found.key_ends[1:], strict=False)
    for first, last, first_key, last_key in spans:
        rows = found.key_rows[first_key:last_key]
        for number, query in enumerate(range(first, last)):
            seen = rows[: len(rows) - (last - first) + number + 1]  # aligned at the bottom right
            assert seen == expected[query].nonzero().flatten().tolist()


@pytest.mark.parametrize("window", [None, 1, 3, 8])
@given(groups=lengths, size=st.integers(1, 7))
@settings(deadline=None)
def test_blocks_are_those_with_an_allowed_key(groups: list[list[int]], size: int, window: int | None) -> None:
    expected = allowed(groups, window)
    num = -(-len(expected) // size)
    blocks = [
        [column for column in range(num) if expected[row * size : (row + 1) * size, column * size :][:, :size].any()]
        for row in range(num)
    ]
    assert key_blocks(groups, window, size) == blocks


@pytest.mark.parametrize("window", [None, 1, 3, 8])
@given(groups=lengths)
@settings(deadline=None)
def test_parts_attend_to_what_the_definition_allows(groups: list[list[int]], window: int | None) -> None:
    part, prompt, position = map(torch.tensor, token_parts(groups))
    distance = position[:, None] - position
    found = ((part == part[:, None]) | (part == prompt[:, None])) & (distance >= 0)
    if window is not None:
        found &= distance < window
    assert torch.equal(found, allowed(groups, window))
