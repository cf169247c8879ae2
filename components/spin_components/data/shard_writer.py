"""Writing of a Parquet file of rows in row groups, as the rows come."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import pyarrow as pa
from pyarrow import parquet

GROUP_TOKENS = 2**19
"""Tokens after which a row group ends: 2 MiB of ids in memory."""


class ShardWriter:
    """Writer of one file; what it holds in memory is one row group.

    Rows that fit one row group give the bytes that `shards.write_rows` writes for them.

    Args:
        path: of the file.
        schema: of its columns.
        group_tokens: number of token ids, in all columns together, after which a row group ends.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, group_tokens: int = GROUP_TOKENS) -> None:
        self._writer = parquet.ParquetWriter(path, schema)
        self._schema, self._group_tokens = schema, group_tokens
        self._held: list[pa.RecordBatch] = []
        self._num_tokens = self._num_groups = 0

    def write(self, rows: pa.RecordBatch) -> None:
        """Add rows after the others."""
        self._held.append(rows)
        self._num_tokens += _num_tokens(rows)
        if self._num_tokens >= self._group_tokens:
            self._end_group()

    def _end_group(self) -> None:
        table = pa.Table.from_batches(self._held, schema=self._schema).combine_chunks()
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._held, self._num_tokens = [], 0
        self._num_groups += 1

    def close(self) -> None:
        """Write what is held, and the end of the file; an empty file has one empty row group."""
        if self._held or not self._num_groups:
            self._end_group()
        self._writer.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._writer.close()


def _num_tokens(rows: pa.RecordBatch) -> int:
    return sum(len(column.flatten()) for column in _lists(rows))


def _lists(rows: pa.RecordBatch) -> Iterable[pa.ListArray]:
    return (column for column in rows.columns if pa.types.is_list(column.type))
