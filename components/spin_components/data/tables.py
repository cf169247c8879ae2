"""Records of Parquet and Arrow files, read batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path

_ROWS_A_BATCH = 1024


def unreadable() -> tuple[type[Exception], ...]:
    """What pyarrow raises for files, columns and values that it cannot read."""
    import pyarrow

    return OSError, ValueError, OverflowError, NotImplementedError, pyarrow.ArrowException


def read_table(file: Path, columns: Collection[str] | None) -> Iterator[object]:
    """The records of a table, with all its columns or those of certain names."""
    batches = _arrow_batches(file, columns) if file.suffix == ".arrow" else _parquet_batches(file, columns)
    return chain.from_iterable(batches)


def _parquet_batches(file: Path, columns: Collection[str] | None) -> Iterator[list[object]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as table:
        names = [name for name in table.schema_arrow.names if columns is None or name in columns]
        yield from (batch.to_pylist() for batch in table.iter_batches(batch_size=_ROWS_A_BATCH, columns=names))


def _arrow_batches(file: Path, columns: Collection[str] | None) -> Iterator[list[object]]:
    import pyarrow.ipc

    with pyarrow.memory_map(str(file)) as mapped, pyarrow.ipc.open_stream(mapped) as reader:
        for batch in reader:
            names = [name for name in batch.schema.names if columns is None or name in columns]
            for start in range(0, batch.num_rows, _ROWS_A_BATCH):
                yield batch.select(names).slice(start, _ROWS_A_BATCH).to_pylist()


def count_rows(file: Path) -> int:
    """Number of rows of a table.

    Raises: one of `unreadable()`.
    """
    import pyarrow.ipc
    import pyarrow.parquet

    if file.suffix == ".parquet":
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    with pyarrow.memory_map(str(file)) as mapped, pyarrow.ipc.open_stream(mapped) as reader:
        return sum(batch.num_rows for batch in reader)
