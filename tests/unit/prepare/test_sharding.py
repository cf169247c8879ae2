from __future__ import annotations

import numpy as np
import pytest

from spin_components.errors import DataError
from spin_components.prepare.sharding import divide, shard_inputs
from spin_components.settings.generation import GenerationSettings


def divided(lengths: list[int], shards: int, shard_by: str = "tokens") -> list[list[int]]:
    generation = GenerationSettings.model_validate({"shards": shards, "shard_by": shard_by})
    numbers = np.arange(10, 10 + len(lengths))
    return [part.tolist() for part in divide(numbers, ((length - 1, 1) for length in lengths), generation)]


def test_a_record_goes_to_the_shard_with_the_fewest_tokens() -> None:
    # tokens of both shards after each record: 9 0, 9 2, 9 4, 9 9, 10 9, 10 12
    assert divided([9, 2, 2, 5, 1, 3], 2) == [[10, 14], [11, 12, 13, 15]]
    assert divided([9, 2, 2, 5, 1, 3], 2, "records") == [[10, 12, 14], [11, 13, 15]]


def test_records_of_one_length_are_dealt_in_turn() -> None:
    assert divided([4] * 7, 3) == divided([4] * 7, 3, "records") == [[10, 13, 16], [11, 14], [12, 15]]


def test_lengths_that_alternate_are_balanced_too() -> None:
    lengths = [100, 1] * 50
    totals = [sum(lengths[number - 10] for number in part) for part in divided(lengths, 2)]
    assert abs(totals[0] - totals[1]) <= 100
    assert sum(len(part) for part in divided(lengths, 2)) == 100


def test_more_shards_than_records_are_refused() -> None:
    assert divided([50, 1, 1], 3) == [[10], [11], [12]]
    with pytest.raises(DataError, match=r"2 training prompts cannot fill generation\.shards = 3"):
        divided([1, 1], 3)


def test_only_what_earlier_releases_did_otherwise_is_an_input() -> None:
    assert shard_inputs(GenerationSettings(shards=2)) == {"generation.shard_by": "tokens"}
    assert shard_inputs(GenerationSettings(shards=1)) == shard_inputs(GenerationSettings(shards=2, shard_by="records"))
