"""Division of the training records into shards."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from spin_components.errors import DataError
from spin_components.settings.settings import Settings


def shard_inputs(settings: Settings) -> dict[str, str | int]:
    """How records are divided, as an input of the run where earlier releases would divide them otherwise."""
    shards, data = settings.generation.shards, settings.data
    is_new = shards != 1 and data.shard_by == "tokens"
    return {
        **({"data.shard_by": "tokens"} if is_new else {}),
        **({"data.shard_tokens": data.shard_tokens} if shards == 0 else {}),
    }


def choose_shards(lengths: Iterable[tuple[int, int]], settings: Settings, most: int) -> int:
    """The number of shards: the one that is set, or as many as make shards of at most `data.shard_tokens`.

    Args:
        lengths: tokens of prompt and human answer of each training record.
        settings: of the run.
        most: the largest number that may be chosen.
    """
    if settings.generation.shards:
        return settings.generation.shards
    num_records, num_tokens = 0, 0
    for prompt, answer in lengths:
        num_records, num_tokens = num_records + 1, num_tokens + prompt + answer
    return max(1, min(-(-num_tokens // settings.data.shard_tokens), num_records, most))


def divide(
    numbers: NDArray[np.int64], lengths: Iterable[tuple[int, int]], settings: Settings, shards: int
) -> list[NDArray[np.int64]]:
    """Divide records into shards, each in their order.

    By tokens, each record goes to the shard that has the fewest so far, so that shards differ by at most one record.

    Args:
        numbers: of the records, ascending.
        lengths: tokens of prompt and human answer of each.
        settings: of the run: what the shards have equal parts of.
        shards: their number.

    Raises:
        DataError: there are fewer records than shards.
    """
    if len(numbers) < shards:
        raise DataError(f"{len(numbers)} training prompts cannot fill generation.shards = {shards}; lower it")
    if shards == 1 or settings.data.shard_by == "records":
        return [numbers[shard::shards] for shard in range(shards)]
    shard_of = np.empty(len(numbers), dtype=np.int16)
    by_tokens = [(0, shard) for shard in range(shards)]  # a heap
    for index, (prompt, answer) in enumerate(lengths):
        num_tokens, shard = by_tokens[0]
        shard_of[index] = shard
        heapq.heapreplace(by_tokens, (num_tokens + prompt + answer, shard))
    return [numbers[shard_of == shard] for shard in range(shards)]
