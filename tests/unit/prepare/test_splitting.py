from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from spin_components.algorithm.batching import derive_seed, permutation
from spin_components.data.shards import Prompt
from spin_components.errors import DataError
from spin_components.prepare.rendering import RenderedSet
from spin_components.prepare.splitting import SplitSet, split_records
from spin_components.settings.settings import Settings


def split(train: Sequence[tuple[int, int]], validation: Sequence[tuple[int, int]] = (), **data: Any) -> SplitSet:
    """Split records, each a prompt and an answer of one token."""
    settings = Settings.model_validate({"model": {"base": "m"}, "data": {"train": "d", **data}})
    sets = {"train": train, "validation": validation} if validation else {"train": train}
    prompts = {
        name: [Prompt(i, [question], [answer], True) for i, (question, answer) in enumerate(records)]
        for name, records in sets.items()
    }
    return split_records(RenderedSet(prompts, [0], "", 0, 0, 0, "", []), settings)


def questions(prompts: Sequence[Prompt]) -> list[int]:
    return [prompt.prompt_ids[0] for prompt in prompts]


@pytest.mark.parametrize("deduplicate", [True, False])
def test_records_without_duplicates_are_split_by_the_first_of_a_permutation(deduplicate: bool) -> None:
    done = split([(i, 0) for i in range(20)], validation_size=4, deduplicate=deduplicate)
    held_out = sorted(permutation(20, derive_seed(0, "split"))[:4])
    assert questions(done.validation) == held_out
    assert questions(done.train) == [i for i in range(20) if i not in held_out]
    assert done.warnings() == []


def test_equal_prompts_are_held_out_together() -> None:
    done = split([(i % 10, i % 10) for i in range(60)], validation_size=13)
    assert len(done.validation) == 12  # two questions, each six times; a third one would be too many
    assert set(questions(done.validation)).isdisjoint(questions(done.train))
    assert (done.num_train_duplicates, done.num_validation_duplicates, done.num_shared) == (0, 10, 0)
    assert done.facts()["num_validation_duplicates"] == 10


def test_a_training_record_that_repeats_an_earlier_one_is_left_out_and_told() -> None:
    records = [(2, 2), (1, 1), (1, 9), (1, 1), (2, 2), (1, 1)]
    done = split(records, [(5, 5)])
    assert [(*each.prompt_ids, *each.actual_ids) for each in done.train] == [(2, 2), (1, 1), (1, 9)]
    assert [each.index for each in done.train] == [0, 1, 2]
    assert done.facts()["num_removed_repeats"] == 3
    assert done.warnings()[0].startswith("3 training records are duplicates: the same prompt and answer as an earlier")


@pytest.mark.parametrize("kept", ["across", False])
def test_repeats_count_as_often_as_they_are_there_where_that_is_asked_for(kept: Any) -> None:
    done = split([(1, 1), (1, 1), (2, 2), (3, 3)], [(3, 3)], deduplicate=kept)
    assert (done.num_train_duplicates, done.num_repeats) == (1, 0)
    assert done.warnings()[0].startswith(f"1 of {len(done.train)} training records are duplicates")
    assert (3 in questions(done.train)) == (kept is False)


def test_the_limit_counts_distinct_records() -> None:
    assert questions(split([(1, 1), (1, 1), (2, 2), (3, 3)], [(9, 9)], max_train_records=2).train) == [1, 2]


def test_one_prompt_for_all_is_split_by_its_answers() -> None:
    done = split([(7, i) for i in range(20)], validation_size=4)
    assert (len(done.train), len(done.validation), done.num_shared, done.num_removed) == (16, 4, 16, 0)
    assert "16 of 16 training records have the same prompt" in done.warnings()[0]


def test_one_record_many_times_is_split_all_the_same() -> None:
    done = split([(7, 7)] * 20, validation_size=4)
    assert (len(done.validation), len(done.train), done.num_repeats) == (4, 1, 15)


def test_prompts_of_the_validation_file_are_left_out_of_training() -> None:
    done = split([(1, 1), (2, 2), (3, 3), (2, 9)], [(2, 2)])
    assert questions(done.train) == [1, 3]
    assert (done.num_shared, done.num_removed) == (2, 2)
    assert "2 training records have the same prompt as a validation record and were left out" in done.warnings()[0]


def test_shared_prompts_are_kept_and_told_where_that_is_asked_for() -> None:
    done = split([(1, 1), (2, 2)], [(2, 2)], deduplicate=False)
    assert questions(done.train) == [1, 2]
    assert done.facts()["num_shared_prompts"] == 1
    assert "1 of 2 training records have the same prompt" in done.warnings()[0]


def test_files_with_the_same_records_are_refused() -> None:
    message = (
        "every one of 2 training records is identical to a validation record: data.train = 'd' holds nothing that "
        "data.validation = '' does not; leave data.validation empty"
    )
    with pytest.raises(DataError, match=message):
        split([(1, 1), (2, 2)], [(2, 2), (1, 1)])
    assert len(split([(1, 1), (2, 2)], [(2, 2), (1, 1)], deduplicate=False).train) == 2


def test_only_validation_records_that_are_used_count() -> None:
    done = split([(1, 1), (2, 2)], [(1, 1), (2, 2)], max_validation_records=1)
    assert (questions(done.train), questions(done.validation)) == ([2], [1])


def test_nothing_left_is_refused() -> None:
    with pytest.raises(DataError, match="no training records are left of 3"):
        split([(1, 1), (2, 2), (3, 3)], validation_size=3)
