from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spin_components.data.shards import Prompt
from spin_components.prepare.spool import RecordSpool

ROWS = [
    Prompt(0, [1, 2], [3], True),
    Prompt(1, [1], [2, 3], True),  # the same ids, divided otherwise
    Prompt(2, [1, 2], [4, 999], False),
    Prompt(3, [1], [2, 3], True),
    Prompt(4, [70000], [], False),
]


@pytest.fixture
def spool(tmp_path: Path) -> RecordSpool:
    """The rows, in two batches."""
    spool = RecordSpool(tmp_path / "records", 7)
    spool.add(ROWS[:2])
    spool.add(ROWS[2:])
    spool.close()
    return spool


def test_equal_prompts_and_records_have_the_number_of_the_first(spool: RecordSpool) -> None:
    keys = spool.keys(5, is_given=False)
    assert keys.prompts.tolist() == [0, 1, 0, 1, 4]
    assert keys.records.tolist() == [0, 1, 2, 1, 4]
    assert len(set(keys.points.tolist())) == 3


def test_rows_are_read_back_in_order(spool: RecordSpool) -> None:
    assert [Prompt(**row) for batch in spool.batches() for row in batch.to_pylist()] == ROWS
    assert [spool.record(number) for number in (0, 2, 4)] == [ROWS[0], ROWS[2], ROWS[4]]
    with pytest.raises(IndexError):
        spool.record(5)


def test_lengths_and_highest_ids_are_at_hand(spool: RecordSpool) -> None:
    numbers = np.array([2, 4])
    assert len(spool) == 5
    assert list(spool.lengths(numbers)) == [(2, 2), (1, 0)]
    assert spool.highest(numbers).tolist() == [999, 70000]


def test_no_records_are_no_error(tmp_path: Path) -> None:
    spool = RecordSpool(tmp_path / "records", 0)
    spool.close()
    keys = spool.keys(0, is_given=True)
    assert (len(spool), len(keys.prompts), len(keys.records), list(spool.batches())) == (0, 0, 0, [])
