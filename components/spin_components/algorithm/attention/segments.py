"""Index tensors of packed attention, from the groups' lengths alone: plain functions of integers, on any device.

Shapes: T tokens of all groups, S segments. A group [prompt, answer 0, answer 1, …] has a segment of queries for its
prompt and first answer together, and one for each further answer; none is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

Lengths = Sequence[Sequence[int]]
"""Tokens of each group's prompt and answers, see `packing.PackedBatch`."""


class Segments(NamedTuple):
    """Queries and keys of each segment, as kernels for sequences of varying length take them.

    The queries of all segments are the tokens in their order. The keys of a further answer are those of its prompt and
    its own: the rows of a prompt are taken once for each answer.

    Attributes:
        key_rows: token of each key, (number of keys,).
        query_ends: 0, then the end of each segment among the queries, (S + 1,).
        key_ends: the same among the keys, (S + 1,).
    """

    key_rows: list[int]
    query_ends: list[int]
    key_ends: list[int]

    @property
    def max_queries(self) -> int:
        """Queries of the longest segment."""
        return _longest(self.query_ends)

    @property
    def max_keys(self) -> int:
        """Keys of the longest segment."""
        return _longest(self.key_ends)


def _longest(ends: Sequence[int]) -> int:
    return max(end - start for start, end in pairwise(ends))


def segments(lengths: Lengths) -> Segments:
    """The segments of packed groups."""
    key_rows: list[int] = []
    query_ends, key_ends = [0], [0]
    first = 0
    for prompt, *answers in lengths:
        start = first + prompt
        for number, answer in enumerate(answers):
            if number == 0:
                key_rows += range(first, start + answer)
                query_ends.append(start + answer)
                key_ends.append(len(key_rows))
            elif answer:
                key_rows += [*range(first, first + prompt), *range(start, start + answer)]
                query_ends.append(start + answer)
                key_ends.append(len(key_rows))
            start += answer
        first = start
    return Segments(key_rows, query_ends, key_ends)


class TokenParts(NamedTuple):
    """The part (a prompt or an answer) of each token, (T,) each.

    A token attends to the tokens of its own part and of its prompt that are not behind it.

    Attributes:
        part: number of the part.
        prompt: number of the part that is its prompt; `part` on prompts.
        position: in its own sequence of prompt and answer.
    """

    part: list[int]
    prompt: list[int]
    position: list[int]


def token_parts(lengths: Lengths) -> TokenParts:
    """The part of each token of packed groups."""
    found = TokenParts([], [], [])
    number = 0
    for prompt, *answers in lengths:
        its_prompt = number
        for place, length in enumerate((prompt, *answers)):
            start = prompt if place else 0
            found.part.extend([number] * length)
            found.prompt.extend([its_prompt] * length)
            found.position.extend(range(start, start + length))
            number += 1
    return found


def key_blocks(lengths: Lengths, window: int | None, size: int) -> list[list[int]]:
    """Blocks of keys that each block of queries attends to, ascending; the others are not computed.

    Args:
        lengths: of the groups.
        window: see `packing.AttentionOptions`.
        size: tokens in a block.
    """
    num_tokens = sum(map(sum, lengths))
    blocks: list[set[int]] = [set() for _ in range(-(-num_tokens // size))]
    first = 0  # token of the group
    for prompt, *answers in lengths:
        start = first
        for place, length in enumerate((prompt, *answers)):
            offset = prompt if place else 0  # position of the part's first token
            for low in _starts(start, start + length, size):
                high = min(start + length, (low // size + 1) * size)  # queries low … high - 1, of one block
                oldest = 0 if window is None else max(0, offset + low - start - window + 1)  # position
                own = start + max(0, oldest - offset)
                blocks[low // size].update(range(own // size, (high - 1) // size + 1))
                if place and oldest < prompt:
                    blocks[low // size].update(range((first + oldest) // size, (first + prompt - 1) // size + 1))
            start += length
        first = start
    return [sorted(each) for each in blocks]


def _starts(start: int, end: int, size: int) -> list[int]:
    """First token of a span in each block that it reaches into."""
    return [max(start, number * size) for number in range(start // size, -(-end // size))] if end > start else []
