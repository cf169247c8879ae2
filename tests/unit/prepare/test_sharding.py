from __future__ import annotations

import numpy as np
import pytest

from spin_components.errors import DataError
from spin_components.prepare.sharding import choose_shards, divide, shard_inputs
from spin_components.settings.settings import Settings


def settings(shards: int, shard_by: str = "tokens") -> Settings:
    data = {"train": "d", "shard_by": shard_by}
    return Settings.model_validate({"model": {"base": "m"}, "data": data, "generation": {"shards": shards}})


def divided(lengths: list[int], shards: int, shard_by: str = "tokens") -> list[list[int]]:
    numbers = np.arange(10, 10 + len(lengths))
    parts = divide(numbers, ((length - 1, 1) for length in lengths), settings(shards, shard_by), shards)
    return [part.tolist() for part in parts]


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


def chosen(lengths: list[int], shards: int, shard_tokens: int, most: int = 256) -> int:
    data = {"train": "d", "shard_tokens": shard_tokens}
    table = {"model": {"base": "m"}, "data": data, "generation": {"shards": shards}}
    return choose_shards(((length - 1, 1) for length in lengths), Settings.model_validate(table), most)


def test_as_many_shards_are_chosen_as_hold_the_tokens() -> None:
    assert [chosen([5, 5, 5], 0, tokens) for tokens in (15, 14, 8, 7)] == [1, 2, 2, 3]
    assert chosen([5, 5, 5], 0, 1) == 3, "one record each"
    assert chosen([5, 5, 5], 0, 1, most=2) == 2
    assert chosen([5, 5, 5], 7, 15) == 7, "a number that is set stays"


def test_only_what_earlier_releases_did_otherwise_is_an_input() -> None:
    assert shard_inputs(settings(2)) == {"data.shard_by": "tokens"}
    assert shard_inputs(settings(1)) == shard_inputs(settings(2, "records")) == {}


def test_the_number_that_is_chosen_follows_from_an_input() -> None:
    assert shard_inputs(settings(0)) == {"data.shard_by": "tokens", "data.shard_tokens": 8_000_000}
    assert shard_inputs(settings(0, "records")) == {"data.shard_tokens": 8_000_000}
