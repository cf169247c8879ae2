from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from spin_components.algorithm.batching import derive_seed, permutation
from spin_components.data.shards import Prompt
from spin_components.errors import DataError
from spin_components.prepare.splitting import SplitSet, split_records
from spin_components.prepare.spool import RecordSpool
from spin_components.settings.settings import Settings


class Split(NamedTuple):
    """A split, and the records that it is of."""

    made: SplitSet
    records: list[tuple[int, int]]


@pytest.fixture
def split(tmp_path: Path) -> Any:
    """Split records, each a prompt and an answer of one token."""
    names = itertools.count()

    def run(train: Sequence[tuple[int, int]], validation: Sequence[tuple[int, int]] = (), **data: Any) -> Split:
        settings = Settings.model_validate({"model": {"base": "m"}, "data": {"train": "d", **data}})
        records = [*train, *validation]
        spool = RecordSpool(tmp_path / str(next(names)), settings.run.seed)
        spool.add([Prompt(index, [prompt], [answer], True) for index, (prompt, answer) in enumerate(records)])
        spool.close()
        return Split(split_records(spool.keys(len(train), is_given=bool(validation)), settings), records)

    return run


def trained(done: Split) -> list[int]:
    """Questions of the training records."""
    return [done.records[number][0] for number in done.made.train]


def held_out(done: Split) -> list[int]:
    """Questions of the validation records."""
    return [done.records[number][0] for number in done.made.validation]


@pytest.mark.parametrize("deduplicate", [True, False])
def test_records_without_duplicates_are_split_by_the_first_of_a_permutation(split: Any, deduplicate: bool) -> None:
    done = split([(i, 0) for i in range(20)], validation_size=4, deduplicate=deduplicate)
    first = sorted(permutation(20, derive_seed(0, "split"))[:4])
    assert held_out(done) == first
    assert trained(done) == [i for i in range(20) if i not in first]
    assert done.made.warnings() == []


def test_equal_prompts_are_held_out_together(split: Any) -> None:
    done = split([(i % 10, i % 10) for i in range(60)], validation_size=13)
    assert len(done.made.validation) == 12  # two questions, each six times; a third one would be too many
    assert set(held_out(done)).isdisjoint(trained(done))
    assert (done.made.num_train_duplicates, done.made.num_validation_duplicates, done.made.num_shared) == (0, 10, 0)
    assert done.made.facts()["num_validation_duplicates"] == 10


def test_a_training_record_that_repeats_an_earlier_one_is_left_out_and_told(split: Any) -> None:
    records = [(2, 2), (1, 1), (1, 9), (1, 1), (2, 2), (1, 1)]
    done = split(records, [(5, 5)])
    assert list(done.made.train) == [0, 1, 2]
    assert done.made.facts()["num_removed_repeats"] == 3
    assert done.made.warnings()[0].startswith(
        "3 training records are duplicates: the same prompt and answer as an earlier"
    )


@pytest.mark.parametrize("kept", ["across", False])
def test_repeats_count_as_often_as_they_are_there_where_that_is_asked_for(split: Any, kept: Any) -> None:
    done = split([(1, 1), (1, 1), (2, 2), (3, 3)], [(3, 3)], deduplicate=kept)
    assert (done.made.num_train_duplicates, done.made.num_repeats) == (1, 0)
    assert done.made.warnings()[0].startswith(f"1 of {len(done.made.train)} training records are duplicates")
    assert (3 in trained(done)) == (kept is False)


def test_the_limit_counts_distinct_records(split: Any) -> None:
    assert trained(split([(1, 1), (1, 1), (2, 2), (3, 3)], [(9, 9)], max_train_records=2)) == [1, 2]


def test_one_prompt_for_all_is_split_by_its_answers(split: Any) -> None:
    done = split([(7, i) for i in range(20)], validation_size=4)
    assert (len(done.made.train), len(done.made.validation), done.made.num_shared, done.made.num_removed) == (
        16,
        4,
        16,
        0,
    )
    assert "16 of 16 training records have the same prompt" in done.made.warnings()[0]


def test_one_record_many_times_is_split_all_the_same(split: Any) -> None:
    done = split([(7, 7)] * 20, validation_size=4)
    assert (len(done.made.validation), len(done.made.train), done.made.num_repeats) == (4, 1, 15)


def test_prompts_of_the_validation_file_are_left_out_of_training(split: Any) -> None:
    done = split([(1, 1), (2, 2), (3, 3), (2, 9)], [(2, 2)])
    assert trained(done) == [1, 3]
    assert (done.made.num_shared, done.made.num_removed) == (2, 2)
    assert "2 training records have the same prompt as a validation record and were left out" in done.made.warnings()[0]


def test_shared_prompts_are_kept_and_told_where_that_is_asked_for(split: Any) -> None:
    done = split([(1, 1), (2, 2)], [(2, 2)], deduplicate=False)
    assert trained(done) == [1, 2]
    assert done.made.facts()["num_shared_prompts"] == 1
    assert "1 of 2 training records have the same prompt" in done.made.warnings()[0]


def test_files_with_the_same_records_are_refused(split: Any) -> None:
    message = (
        "every one of 2 training records is identical to a validation record: data.train = 'd' holds nothing that "
        "data.validation = '' does not; leave data.validation empty"
    )
    with pytest.raises(DataError, match=message):
        split([(1, 1), (2, 2)], [(2, 2), (1, 1)])
    assert len(split([(1, 1), (2, 2)], [(2, 2), (1, 1)], deduplicate=False).made.train) == 2


def test_only_validation_records_that_are_used_count(split: Any) -> None:
    done = split([(1, 1), (2, 2)], [(1, 1), (2, 2)], max_validation_records=1)
    assert (trained(done), held_out(done)) == ([2], [1])


def test_nothing_left_is_refused(split: Any) -> None:
    with pytest.raises(DataError, match="no training records are left of 3"):
        split([(1, 1), (2, 2), (3, 3)], validation_size=3)


def test_a_fraction_is_split_by_the_hash_of_the_prompt(split: Any) -> None:
    before = split([(i, 0) for i in range(2000)], validation_size=0.1)
    assert 150 < len(before.made.validation) < 250  # 200, with a standard deviation of 13.4
    after = split([(i, 1) for i in range(3000) if i % 7], validation_size=0.1)
    there = set(range(3000)) - set(range(0, 3000, 7))
    assert set(held_out(after)) & set(range(2000)) == set(held_out(before)) & there, "no record changes its side"
    other = split([(i, 0) for i in range(2000)], validation_size=0.1, split="shuffle")
    assert (len(other.made.validation), held_out(other) != held_out(before)) == (200, True)


def test_equal_prompts_have_one_hash(split: Any) -> None:
    done = split([(i % 50, i) for i in range(400)], validation_size=0.3, deduplicate=False)
    assert set(held_out(done)).isdisjoint(trained(done))
    assert len(done.made.validation) % 8 == 0


def test_the_hash_depends_on_the_seed_alone(tmp_path: Path) -> None:
    points = {}
    for seed in (0, 1):
        spool = RecordSpool(tmp_path / str(seed), seed)
        spool.add([Prompt(0, [1, 2], [3], True)])
        points[seed] = int(spool.keys(1, is_given=False).points[0])
    # the first 8 bytes of BLAKE2b of the little-endian int32 1 and 2, with the key "prompt:0"
    assert points[0] == 8031383315476475123
    assert points[1] != points[0]


@pytest.mark.parametrize("size", [1e-9, 1 - 1e-9])
def test_a_fraction_of_few_prompts_leaves_some_on_both_sides(split: Any, size: float) -> None:
    done = split([(1, 1), (1, 2), (2, 1), (3, 1)], validation_size=size)
    assert set(held_out(done)) | set(trained(done)) == {1, 2, 3}
    assert len(set(held_out(done) if size < 0.5 else trained(done))) == 1


def test_a_number_may_be_split_by_the_hash_too(split: Any) -> None:
    few = split([(i, 0) for i in range(20)], validation_size=4, split="hash")
    more = split([(i, 0) for i in range(40)], validation_size=8, split="hash")
    assert (len(few.made.validation), len(more.made.validation)) == (4, 8)
    assert set(held_out(more)) & set(range(20)) <= set(held_out(few)) | set(held_out(more))


def test_one_prompt_for_all_has_no_hash_to_split_by(split: Any) -> None:
    done = split([(7, i) for i in range(20)], validation_size=0.2)
    assert (len(done.made.train), len(done.made.validation)) == (16, 4)
