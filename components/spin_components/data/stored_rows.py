"""Rows of Parquet files read batch by batch, and held in a local file that gives single rows."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from spin_components.data.row_sequence import Row, RowSequence
from spin_components.data.shards import check_columns, needed_columns
from spin_components.errors import IntegrityError

_ROWS_READ = 256
_ROWS_HELD = 64
"""Rows of the local file that are read together."""
_BYTES_READ = 2**20
_BYTES_IN_MEMORY = 2**22
"""Size up to which rows are held in memory instead of in a file."""


def stream_batches(
    paths: Iterable[Path], kind: type[Any] | None, columns: Sequence[str] | None = None, *, num_rows: int = _ROWS_READ
) -> Iterator[pa.RecordBatch]:
    """Read files that hold one kind of rows, without ever having more than a part of one in memory.

    Args:
        paths: the files, in order.
        kind: of the rows; None for any, as in files of older versions.
        columns: what to read, as far as it is there; None for all.
        num_rows: the most rows of a batch.

    Raises:
        IntegrityError: a file cannot be read or has other columns.
    """
    for path in paths:
        try:
            file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BYTES_READ)
        except (OSError, pa.ArrowInvalid) as error:
            raise unreadable(path, error) from error
        with file:
            names = file.schema_arrow.names
            if kind is not None:
                check_columns(path, names, kind)
            chosen = names if columns is None else [name for name in columns if name in names]
            batches = file.iter_batches(num_rows, columns=chosen, use_threads=False)
            while (batch := _next(batches, path)) is not None:
                yield batch


def _next(batches: Iterator[pa.RecordBatch], path: Path) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> IntegrityError:
    """The error of a file that is no Parquet file, or a damaged one."""
    return IntegrityError(f"{path} cannot be read as Parquet: {error}")


def read_numbers(
    paths: Sequence[Path], kind: type[Any] | None, columns: Sequence[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Read columns as arrays, (N,) each: numbers as they are, of lists of token ids the lengths, int32.

    Args:
        paths: the files, in order.
        kind: of the rows; None for any.
        columns: names; None for all. One that no file has is left out.

    Raises:
        IntegrityError: see `stream_batches`.
    """
    expected = needed_columns(kind) if kind else ()
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in expected if columns is None or name in columns}
    for batch in stream_batches(paths, kind, columns, num_rows=16 * _ROWS_READ):
        for name in batch.schema.names:
            column = batch.column(name)
            values = compute.list_value_length(column) if pa.types.is_list(column.type) else column
            parts.setdefault(name, []).append(np.array(values))  # a copy, so that nothing holds the batch
    return {name: np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64) for name, arrays in parts.items()}


def make_rows(batch: pa.RecordBatch, kind: type[Row]) -> list[Row]:
    """Rows of a batch as objects of one kind."""
    names = batch.schema.names
    rows = zip(*map(_values, batch.columns), strict=True)
    return [kind(**dict(zip(names, row, strict=True))) for row in rows]


def _values(column: pa.Array) -> list[Any]:
    if not pa.types.is_list(column.type):
        return list(column.to_pylist())
    if column.null_count:
        return list(column.to_pylist())
    offsets, ids = column.offsets.to_numpy(), column.values.to_numpy()
    return [ids[start:end].tolist() for start, end in pairwise(offsets)]


class StoredRows(RowSequence[Row]):
    """Rows in a local file without a name, in Arrow's IPC format; a row is read when it is asked for.

    Rows are copied from Parquet, which gives no single row without decoding the thousands around it. The file is read
    and not mapped, so that memory is what a few rows take. It is gone with this object, or with the process. Small
    tables stay in memory.

    Args:
        paths: Parquet files, see `stream_batches`.
        kind: of the rows.
        scratch: folder of the local file.
        held: which rows of the files to hold, (N,); None for all.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        kind: type[Row],
        scratch: Path,
        held: NDArray[np.bool_] | None = None,
    ) -> None:
        self._kind = kind
        scratch.mkdir(parents=True, exist_ok=True)
        self._file: Any = tempfile.SpooledTemporaryFile(max_size=_BYTES_IN_MEMORY, dir=str(scratch))  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._starts = self._copy(stream_batches(paths, kind), held)
        self._reader = pa.ipc.open_file(self._file) if len(self) else None
        self._last: tuple[int, pa.RecordBatch] | None = None

    def _copy(self, batches: Iterator[pa.RecordBatch], held: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        """Write the rows; returns the number of the first row of each written batch, and that of all rows."""
        writer, num_read, starts = None, 0, [0]
        for batch in batches:
            rows = batch if held is None else batch.filter(pa.array(held[num_read : num_read + batch.num_rows]))
            num_read += batch.num_rows
            writer = writer or pa.ipc.new_file(self._file, batch.schema)
            for start in range(0, rows.num_rows, _ROWS_HELD):
                part = rows.slice(start, _ROWS_HELD)
                writer.write_batch(part)
                starts.append(starts[-1] + part.num_rows)
        if writer:
            writer.close()
        return np.array(starts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _row(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, place = self._batch(number), index - int(self._starts[number])
        values = (column[place].as_py() for column in batch.columns)
        return self._kind(**dict(zip(batch.schema.names, values, strict=True)))

    def __iter__(self) -> Iterator[Row]:
        for number in range(len(self._starts) - 1):
            yield from make_rows(self._batch(number), self._kind)

    def _batch(self, number: int) -> pa.RecordBatch:
        if self._last is None or self._last[0] != number:
            self._last = number, self._reader.get_batch(number)  # type: ignore[union-attr]
        return self._last[1]


class PickedRows(RowSequence[Row]):
    """Some rows of several sequences, in a given order.

    Args:
        sources: the sequences.
        rows: numbers of the rows, counted through all of them, (N,).
    """

    def __init__(self, sources: Sequence[Sequence[Row]], rows: NDArray[np.integer[Any]]) -> None:
        self._sources, self._rows = sources, rows
        self._starts = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return len(self._rows)

    def _row(self, index: int) -> Row:
        row = int(self._rows[index])
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._sources[number][row - int(self._starts[number])]
