"""Blocks of prompts that engines answer one at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spin_components.settings.generation import GenerationSettings


def test_blocks_by_hand() -> None:
    settings = GenerationSettings(block_size=4)
    assert settings.blocks(11) == [range(2), range(2, 5), range(5, 8), range(8, 11)]
    assert settings.blocks(8) == [range(4), range(4, 8)]
    assert settings.blocks(3) == [range(3)]
    assert [len(GenerationSettings().blocks(num)) for num in (512, 513, 1025, 2049, 4097, 6250)] == [1, 2, 4, 8, 16, 16]
    assert GenerationSettings(block_size=1).blocks(3) == [range(1), range(1, 2), range(2, 3)]
    assert GenerationSettings(block_size=0).blocks(5000) == [range(5000)]


@given(st.integers(1, 5000), st.integers(1, 600))
def test_blocks_are_all_prompts_in_order_and_of_similar_size(num: int, size: int) -> None:
    blocks = GenerationSettings(block_size=size).blocks(num)
    assert [number for block in blocks for number in block] == list(range(num))
    sizes = [len(block) for block in blocks]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
