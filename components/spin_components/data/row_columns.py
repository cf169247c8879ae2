"""Rows of numbers as columns in memory: 4 or 8 bytes a value, where Python objects take 30."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from spin_components.data.row_sequence import Row, RowSequence
from spin_components.data.shards import COLUMNS, needed_columns

_CODES = {pa.int64(): "q", pa.int32(): "i", pa.float32(): "d"}


class RowColumns(RowSequence[Row]):
    """Rows of one kind whose columns are numbers; a row is made when it is read.

    Optional columns are there once `set_column` has added them; until then their values are None.

    Args:
        kind: of the rows, e.g. `Score`.
        rows: the first rows.
        num_zeros: number of rows of zeros to begin with instead, for `__setitem__`.
    """

    def __init__(self, kind: type[Row], rows: Iterable[Row] = (), *, num_zeros: int = 0) -> None:
        self._kind: Any = kind
        names = [field.name for field in fields(cast(Any, kind)) if field.name in needed_columns(kind)]
        self._columns: dict[str, array[Any]] = {}
        for name in names:
            self._columns[name] = array(_CODES[COLUMNS[name]], bytes(8 * num_zeros))
        for column in self._columns.values():
            del column[num_zeros:]
        self.extend(rows)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def _row(self, index: int) -> Row:
        row: Row = self._kind(**{name: column[index] for name, column in self._columns.items()})
        return row

    def __setitem__(self, index: int, row: Row) -> None:
        for name, column in self._columns.items():
            column[index] = getattr(row, name)

    def extend(self, rows: Iterable[Row]) -> None:
        """Append rows."""
        for row in rows:
            for name, column in self._columns.items():
                column.append(getattr(row, name))

    def column(self, name: str) -> NDArray[Any]:
        """A column as an array of its own, (N,)."""
        return np.array(self._columns[name])

    def set_column(self, name: str, values: NDArray[Any]) -> None:
        """Replace or add a column, (N,)."""
        code = "f" if values.dtype == np.float32 else _CODES[COLUMNS[name]]
        self._columns[name] = array(code)
        self._columns[name].frombytes(np.ascontiguousarray(values, dtype=code).data.cast("B"))

    def write(self, path: Path) -> None:
        """Write the rows, as `write_rows` writes a list of them."""
        names = [field.name for field in fields(self._kind) if field.name in self._columns]
        arrays = [pa.array(np.frombuffer(self._columns[name], self._columns[name].typecode)) for name in names]
        columns = {name: values.cast(COLUMNS[name]) for name, values in zip(names, arrays, strict=True)}
        parquet.write_table(pa.table(columns), path)
