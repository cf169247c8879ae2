from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from spin_components.data.shard_writer import ShardWriter
from spin_components.data.shards import PROMPT_SCHEMA, Prompt, read_rows, write_rows

ROWS = [Prompt(index, [index] * 3, [1, 2][: index % 3], index % 2 == 0) for index in range(10)]


def batch(rows: list[Prompt]) -> pa.RecordBatch:
    columns = {name: [getattr(row, name) for row in rows] for name in PROMPT_SCHEMA.names}
    return pa.RecordBatch.from_pydict(columns, schema=PROMPT_SCHEMA)


@pytest.mark.parametrize("rows", [ROWS, []], ids=["rows", "none"])
def test_what_fits_one_row_group_has_the_bytes_of_a_table_written_at_once(tmp_path: Path, rows: list[Prompt]) -> None:
    with ShardWriter(tmp_path / "a", PROMPT_SCHEMA) as writer:
        for start in range(0, len(rows), 4):
            writer.write(batch(rows[start : start + 4]))
    write_rows(tmp_path / "b", Prompt, rows)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_row_group_ends_at_its_number_of_tokens(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", PROMPT_SCHEMA, group_tokens=11) as writer:
        for row in ROWS:
            writer.write(batch([row]))
    # a row has 3, 4 and 5 tokens in turn: 12 after three rows, then 12 again
    metadata = parquet.read_metadata(tmp_path / "a")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [3, 3, 3, 1]
    assert read_rows(tmp_path / "a", Prompt) == ROWS
