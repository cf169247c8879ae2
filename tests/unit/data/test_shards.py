from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from spin_components.data.shards import AnswerLoss, Pair, PairReward, Prompt, Score, read_rows, write_rows
from spin_components.errors import IntegrityError

ROWS: list[tuple[type[Any], list[Any]]] = [
    (Prompt, [Prompt(0, [1, 2], [3], True), Prompt(7, [2**31 - 1], [], False)]),
    (Pair, [Pair(0, [1, 2], [3], [4, 5], "stop"), Pair(2**40, [1], [2], [], "length", 31, -1.25)]),
    (Score, [Score(3, -0.5, -1024.25, 0, 0), Score(1, 0.0, -3.0, 7, 2)]),  # exactly representable in float32
    (Score, [Score(3, -0.5, -1024.25, 0, 0, -0.25, -2.0), Score(1, 0.0, -3.0, 7, 2, -1.0, 0.0)]),
    (PairReward, [PairReward(3, 2**40, 0.5, -2.25, 1)]),
    (AnswerLoss, [AnswerLoss(3, 12.5, 7)]),
]
KINDS = ["Prompt", "Pair", "Score", "Score with base", "PairReward", "AnswerLoss"]


@pytest.mark.parametrize(("kind", "rows"), ROWS, ids=KINDS)
def test_rows_round_trip_in_order(tmp_path: Path, kind: type[Any], rows: list[Any]) -> None:
    write_rows(tmp_path / "a.parquet", kind, rows)
    assert read_rows(tmp_path / "a.parquet", kind) == rows


@pytest.mark.parametrize(("kind", "rows"), ROWS, ids=KINDS)
def test_an_empty_file_round_trips(tmp_path: Path, kind: type[Any], rows: list[Any]) -> None:
    write_rows(tmp_path / "a.parquet", kind, [])
    assert read_rows(tmp_path / "a.parquet", kind) == []


@pytest.mark.parametrize(("kind", "rows"), ROWS, ids=KINDS)
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, kind: type[Any], rows: list[Any]) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / name, kind, rows)
    write_rows(tmp_path / "c", kind, rows[:-1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_scores_are_float32(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", Score, [Score(0, -0.1, -0.2, 0, 0)])
    (score,) = read_rows(tmp_path / "a.parquet", Score)
    # the float32 nearest to 0.1 is 13421773 / 2**27
    assert score.ref_actual == -13421773 / 2**27


def test_scores_of_the_base_model_are_optional_columns(tmp_path: Path) -> None:
    for name, score in (("without", Score(0, -0.5, -1.0, 0, 0)), ("with", Score(0, -0.5, -1.0, 0, 0, -0.25, -2.0))):
        write_rows(tmp_path / name, Score, [score])
    columns = [set(parquet.read_schema(tmp_path / name).names) for name in ("without", "with")]
    assert columns[1] - columns[0] == {"base_actual", "base_generated"}


def test_other_columns_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", Prompt, [Prompt(0, [1], [2], True)])
    with pytest.raises(IntegrityError, match=r"has the columns .*'actual_ended'\], expected .*'sampled_logprob'\]"):
        read_rows(tmp_path / "a.parquet", Pair)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"a\.parquet cannot be read as Parquet"):
        read_rows(tmp_path / "a.parquet", Score)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_rows(path, Prompt, ROWS[0][1])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_rows(path, Prompt)


def test_tokens_of_a_pair_count_the_prompt_twice() -> None:
    assert Pair(0, [1, 2, 3], [4], [5, 6], "stop").num_tokens == 9


@pytest.mark.parametrize(("generated", "empty"), [([], True), ([2], True), ([2, 9], True), ([2, 4], False)])
def test_an_answer_of_eos_only_is_empty(generated: list[int], empty: bool) -> None:
    assert Pair(0, [1], [4], generated, "stop").is_empty([2, 9]) is empty


def test_the_humans_own_answer_is_identical_only_with_its_eos() -> None:
    assert Pair(0, [1], [4, 2], [4, 2], "stop").is_identical
    assert not Pair(0, [1], [4, 2], [4], "length").is_identical
