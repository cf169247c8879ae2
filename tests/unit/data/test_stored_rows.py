from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spin_components.data import stored_rows
from spin_components.data.row_columns import RowColumns
from spin_components.data.shards import Pair, Score, write_rows
from spin_components.data.stored_rows import PickedRows, StoredRows, read_numbers, stream_batches
from spin_components.errors import IntegrityError

PAIRS = [Pair(i, [i, 1], [i] * (i % 5), list(range(i % 7)), "stop", i % 2, -0.5 * i) for i in range(1000)]
SCORES = [Score(3, -0.5, -1024.25, 0, 0), Score(2**40, 0.0, -3.0, 7, 2)]  # exactly representable in float32


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.parquet", tmp_path / "none.parquet", tmp_path / "b.parquet"]
    for path, rows in zip(paths, (PAIRS[:300], [], PAIRS[300:]), strict=True):
        write_rows(path, Pair, rows)
    return paths


def test_rows_of_several_files_are_those_that_were_written(files: list[Path], tmp_path: Path) -> None:
    rows = StoredRows(files, Pair, tmp_path / "scratch")
    assert list(rows) == PAIRS
    assert [rows[i] for i in (999, 0, 63, 64, 300, -1)] == [PAIRS[i] for i in (999, 0, 63, 64, 300, -1)]
    assert rows[250:310] == PAIRS[250:310]
    with pytest.raises(IndexError, match="row 1000 of 1000"):
        rows[1000]


def test_rows_that_outgrow_memory_lie_in_a_file_without_a_name(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_rows, "_BYTES_IN_MEMORY", 1000)
    scratch = tmp_path / "scratch"
    rows = StoredRows(files, Pair, scratch)
    assert (list(rows), list(scratch.iterdir())) == (PAIRS, [])


def test_only_the_rows_that_are_held_are_copied(files: list[Path], tmp_path: Path) -> None:
    held = np.zeros(1000, dtype=np.bool_)
    held[[0, 299, 300, 998]] = True
    assert list(StoredRows(files, Pair, tmp_path, held)) == [PAIRS[i] for i in (0, 299, 300, 998)]


def test_no_files_are_no_rows(tmp_path: Path) -> None:
    rows = StoredRows([], Pair, tmp_path)
    assert (len(rows), list(rows)) == (0, [])


def test_rows_are_picked_from_several_sequences_in_the_order_asked_for() -> None:
    picked = PickedRows([PAIRS[:10], [], PAIRS[10:20]], np.array([19, 0, 10, 9, 19]))
    assert list(picked) == [PAIRS[i] for i in (19, 0, 10, 9, 19)]
    assert picked[1:3] == [PAIRS[0], PAIRS[10]]


def test_token_ids_are_read_as_their_number(files: list[Path]) -> None:
    numbers = read_numbers(files, Pair, ["index", "generated_ids"])
    assert numbers["index"].tolist() == list(range(1000))
    assert numbers["generated_ids"].tolist() == [i % 7 for i in range(1000)]


def test_a_batch_of_a_file_is_a_small_part_of_it(files: list[Path]) -> None:
    sizes = [batch.num_rows for batch in stream_batches(files, Pair, num_rows=256)]
    assert sizes == [256, 44, 256, 256, 188]


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more"])
def test_what_is_no_parquet_is_refused_by_its_name(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"a\.parquet cannot be read as Parquet"):
        StoredRows([tmp_path / "a.parquet"], Pair, tmp_path)


def test_another_kind_of_rows_is_refused(files: list[Path]) -> None:
    with pytest.raises(IntegrityError, match=r"has the columns .*, expected \['index', 'ref_actual'"):
        read_numbers(files, Score)


@pytest.mark.parametrize("base", [False, True])
def test_columns_write_the_bytes_that_a_list_of_rows_does(tmp_path: Path, base: bool) -> None:
    rows, columns = [*SCORES, Score(5, 0.1, 0.2, 1, 1)], RowColumns(Score, num_zeros=3)
    if base:
        rows = [replace(row, base_actual=-1.0, base_generated=0.1) for row in rows]
        columns.set_column("base_actual", np.array([-1.0] * 3))
        columns.set_column("base_generated", np.array([0.1] * 3))
    for i in (2, 0, 1):
        columns[i] = rows[i]
    assert list(columns) == rows
    assert columns[1:] == rows[1:]
    columns.write(tmp_path / "columns")
    write_rows(tmp_path / "rows", Score, rows)
    assert (tmp_path / "columns").read_bytes() == (tmp_path / "rows").read_bytes()


def test_columns_grow_and_are_read_back(tmp_path: Path) -> None:
    columns = RowColumns(Score, SCORES[:1])
    columns.extend(SCORES[1:])
    columns.write(tmp_path / "a.parquet")
    again = RowColumns(Score)
    for name, values in read_numbers([tmp_path / "a.parquet"], Score).items():
        again.set_column(name, values)
    assert list(again) == list(columns) == SCORES
