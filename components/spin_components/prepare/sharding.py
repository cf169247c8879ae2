"""Division of the training records into shards."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from spin_components.errors import DataError
from spin_components.settings.generation import GenerationSettings


def shard_inputs(generation: GenerationSettings) -> dict[str, str]:
    """How records are divided, as an input of the run where earlier releases would divide them otherwise."""
    is_new = generation.shards > 1 and generation.shard_by == "tokens"
    return {"generation.shard_by": "tokens"} if is_new else {}


def divide(
    numbers: NDArray[np.int64], lengths: Iterable[tuple[int, int]], generation: GenerationSettings
) -> list[NDArray[np.int64]]:
    """Divide records into shards, each in their order.

    By tokens, each record goes to the shard that has the fewest so far, so that shards differ by at most one record.

    Args:
        numbers: of the records, ascending.
        lengths: tokens of prompt and human answer of each.
        generation: the number of shards, and what they have equal parts of.

    Raises:
        DataError: there are fewer records than shards.
    """
    shards = generation.shards
    if len(numbers) < shards:
        raise DataError(f"{len(numbers)} training prompts cannot fill generation.shards = {shards}; lower it")
    if shards == 1 or generation.shard_by == "records":
        return [numbers[shard::shards] for shard in range(shards)]
    shard_of = np.empty(len(numbers), dtype=np.int16)
    by_tokens = [(0, shard) for shard in range(shards)]  # a heap
    for index, (prompt, answer) in enumerate(lengths):
        num_tokens, shard = by_tokens[0]
        shard_of[index] = shard
        heapq.heapreplace(by_tokens, (num_tokens + prompt + answer, shard))
    return [numbers[shard_of == shard] for shard in range(shards)]
