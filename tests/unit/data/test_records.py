from __future__ import annotations

import gzip
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from spin_components.data.formats import Conversation, Message
from spin_components.data.records import BadRecord, Record, RecordStream, check_source, stream_source
from spin_components.errors import ConfigError, DataError
from spin_components.store.sources import Source

GOOD = json.dumps({"prompt": "Hi", "response": "Hello"}).encode()
HI = Conversation((Message("user", "Hi"),), "Hello")


def written(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines))
    return path


class RecordSet(NamedTuple):
    """A whole file."""

    source: str
    records: tuple[Record, ...]
    num_bad: int
    bad: tuple[BadRecord, ...]


def read_records(path: Path, **options: Any) -> RecordSet:
    stream = RecordStream(path, **options)
    records = tuple(stream)
    return RecordSet(stream.source, records, stream.num_bad, tuple(stream.bad))


def test_lines_are_counted_from_one_and_blank_ones_are_ignored(tmp_path: Path) -> None:
    record_set = read_records(written(tmp_path / "a.jsonl", b"", GOOD, b"  \r", GOOD, b""), on_bad_record="fail")
    assert [(record.line, record.conversation) for record in record_set.records] == [(2, HI), (4, HI)]
    assert (record_set.source, record_set.num_bad, record_set.bad) == (str(tmp_path / "a.jsonl"), 0, ())


def test_a_byte_order_mark_and_crlf_are_tolerated(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", b"\xef\xbb\xbf" + GOOD + b"\r", GOOD + b"\r")
    assert len(read_records(path, on_bad_record="fail").records) == 2


def test_messages_name_a_file_by_its_address(tmp_path: Path) -> None:
    path, address = written(tmp_path / "a.jsonl", GOOD, b"3"), "s3://bucket/data/a.jsonl"
    record_set = read_records(path, address=address, on_bad_record="skip")
    assert (len(record_set.records), record_set.source) == (1, address)
    with pytest.raises(DataError, match=r"\n  s3://bucket/data/a\.jsonl, line 2: "):
        read_records(path, address=address, on_bad_record="fail")


def test_a_source_is_read_file_by_file(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        written(tmp_path / name, GOOD)
    source = Source("s3://bucket/data", tmp_path, ("a.jsonl", "b.jsonl"))
    record_sets = stream_source(source, on_bad_record="fail")
    assert [records.source for records in record_sets] == ["s3://bucket/data/a.jsonl", "s3://bucket/data/b.jsonl"]
    assert [len(list(records)) for records in record_sets] == [1, 1]
    one = Source("s3://bucket/data/a.jsonl", tmp_path, ("a.jsonl",), is_file=True)
    assert [records.source for records in stream_source(one, on_bad_record="fail")] == ["s3://bucket/data/a.jsonl"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_refused_with_the_way_out(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path / "a.jsonl", GOOD.decode().encode(encoding))
    with pytest.raises(DataError, match=rf"a\.jsonl, line 1: the file is {encoding[:6].upper()}.*iconv -f UTF-"):
        read_records(path, on_bad_record="skip")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_pointer_of_git_lfs_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, b"version https://git-lfs.github.com/spec/v1", b"oid sha256:00", b"size 1")
    with pytest.raises(DataError, match=rf"{name} is a pointer of Git LFS.*`git lfs pull`"):
        read_records(path, on_bad_record="skip")


def test_arrow_as_datasets_saves_it_is_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.ipc")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    table = arrow.table({"messages": [turns, turns[:1], turns]})
    path = tmp_path / "a.arrow"
    with arrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    record_set = read_records(path, on_bad_record="skip")
    assert [(record.line, record.conversation) for record in record_set.records] == [(1, HI), (3, HI)]
    with pytest.raises(DataError, match=r"a\.arrow, row 2: messages\[0\] has role 'user' at the end"):
        read_records(path, on_bad_record="fail")
    with pytest.raises(DataError, match=r"b\.arrow, after row 0: cannot be read .*expected an Arrow stream"):
        read_records(written(tmp_path / "b.arrow", GOOD), on_bad_record="skip")


def test_gzip_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD + b"\n" + GOOD))
    assert len(read_records(path, on_bad_record="fail").records) == 2


@pytest.mark.parametrize("damage", [b"not gzip", gzip.compress(GOOD * 100)[:-12]], ids=["none", "cut"])
def test_damaged_gzip_is_refused(tmp_path: Path, damage: bytes) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_records(written(tmp_path / "a.jsonl.gz", damage), on_bad_record="skip")


def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"messages": [turns, turns[:1], turns], "score": [1, 2, 3]}), path)
    record_set = read_records(path, on_bad_record="skip")
    assert [(record.line, record.conversation) for record in record_set.records] == [(1, HI), (3, HI)]
    assert [record.line for record in record_set.bad] == [2]
    with pytest.raises(DataError, match=r"a\.parquet, row 2: messages\[0\] has role 'user' at the end"):
        read_records(path, on_bad_record="fail")


def test_a_parquet_suffix_without_parquet_content_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=r"after row 0: cannot be read .*expected a Parquet file"):
        read_records(written(tmp_path / "a.parquet", GOOD), on_bad_record="skip")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "Hi"', "not valid JSON .* at column 16"),
        (b'{"prompt": "H\xffi", "response": "x"}', "byte 14 is not UTF-8"),
        (b'{"prompt": "Hi", "response": "\\ud83d"}', r"character 1 of a turn is '\\ud83d', half a surrogate pair"),
        (b'{"prompt": "Hi", "response": ""}', "is empty"),
        (GOOD + b",", "Extra data.*expected one JSON object without a comma after it; take the comma away"),
        (b'{"prompt": "Hi", "response": "x",}', "take away the comma before its closing bracket"),
        (b'{"a": ' * 100_000, "not valid JSON|nested too deeply"),
        (b"3", "the record is a number"),
    ],
)
def test_a_bad_line_is_located_and_explained(tmp_path: Path, line: bytes, message: str) -> None:
    path = written(tmp_path / "a.jsonl", GOOD, line, GOOD)
    with pytest.raises(DataError, match=rf"1 of 3 records .*\n  .*a\.jsonl, line 2: .*({message})"):
        read_records(path, on_bad_record="fail")
    assert read_records(path, on_bad_record="skip").num_bad == 1


def test_escaped_surrogate_pairs_are_decoded(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", b'{"prompt": "Hi", "response": "\\ud83d\\ude00"}')
    assert read_records(path, on_bad_record="fail").records[0].conversation.answer == "\U0001f600"


def test_the_first_ten_bad_records_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", GOOD, *[b"{}"] * 12)
    with pytest.raises(DataError) as caught:
        read_records(path, on_bad_record="fail")
    message = str(caught.value)
    assert message.startswith("12 of 13 records")
    assert "line 11:" in message  # lines 2 to 11 are the first ten
    assert "line 12:" not in message
    assert message.endswith("... and 2 more")


def test_skip_counts_all_bad_records_and_keeps_ten(tmp_path: Path) -> None:
    record_set = read_records(written(tmp_path / "a.jsonl", GOOD, *[b"3"] * 12), on_bad_record="skip")
    assert (len(record_set.records), record_set.num_bad, len(record_set.bad)) == (1, 12, 10)
    assert isinstance(record_set.bad[0], BadRecord)
    assert record_set.bad[0].line == 2


def test_a_file_of_bad_records_is_refused_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of 2 records cannot be used"):
        read_records(written(tmp_path / "a.jsonl", b"3", b"{}"), on_bad_record="skip")


def test_reading_stops_after_max_records_good_ones(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", GOOD, b"3", GOOD, b"3", GOOD)
    record_set = read_records(path, on_bad_record="skip", max_records=2)
    assert ([record.line for record in record_set.records], record_set.num_bad) == ([1, 3], 1)
    assert len(read_records(path, on_bad_record="fail", max_records=1).records) == 1


@pytest.mark.parametrize("text", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(DataError, match="holds no records"):
        read_records(written(tmp_path / "a.jsonl", text), on_bad_record="skip")


def test_a_json_array_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: the file starts a JSON array, expected one JSON object a line"):
        read_records(written(tmp_path / "a.json", b"[", GOOD, b"]"), on_bad_record="skip")


def test_paths_that_are_no_data_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.jsonl cannot be read .*No such file"):
        read_records(tmp_path / "missing.jsonl", on_bad_record="fail")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder\.jsonl cannot be read .*Is a directory"):
        read_records(tmp_path / "folder.jsonl", on_bad_record="fail")
    with pytest.raises(DataError, match=r"suffix '\.csv', expected one of \.jsonl, .*\.parquet"):
        read_records(written(tmp_path / "a.csv", GOOD), on_bad_record="fail")


@pytest.mark.parametrize(("on_bad_record", "max_records"), [("ignore", 0), ("skip", -1)])
def test_invalid_arguments_are_refused(tmp_path: Path, on_bad_record: str, max_records: int) -> None:
    with pytest.raises(ConfigError, match="expected 'fail' or 'skip'"):
        read_records(written(tmp_path / "a.jsonl", GOOD), on_bad_record=on_bad_record, max_records=max_records)


def test_importing_the_reader_imports_nothing_heavy() -> None:
    code = (
        "import sys; import spin_components.data.formats, spin_components.data.records; "
        "print(sorted({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def text_column(*values: bytes) -> pyarrow.Array:
    """A column of strings that need not be UTF-8."""
    plain = pyarrow.array(values, pyarrow.binary())
    return pyarrow.Array.from_buffers(pyarrow.string(), len(plain), plain.buffers())


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_column_that_no_format_reads_may_be_unreadable(tmp_path: Path, suffix: str) -> None:
    rows = 2000  # more than a batch: what was read before the column failed is not read twice
    columns = {"prompt": [f"p{row}" for row in range(rows)], "response": ["r"] * rows}
    notes = [b"fine"] * (rows - 1) + [b"\xff\xfe"]
    table, path = pyarrow.table({**columns, "notes": text_column(*notes)}), tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    record_set = read_records(path, on_bad_record="fail")
    assert [record.conversation.prompt[0].content for record in record_set.records] == columns["prompt"]
    assert [record.line for record in record_set.records] == list(range(1, rows + 1))


def test_a_line_that_is_too_long_is_one_bad_record_among_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spin_components.data.records.MAX_LINE_BYTES", 100)
    long = json.dumps({"prompt": "x" * 1000, "response": "y"}).encode()
    record_set = read_records(written(tmp_path / "a.jsonl", GOOD, long, GOOD, long), on_bad_record="skip")
    assert [record.line for record in record_set.records] == [1, 3]
    assert [(bad.line, bad.reason[:15]) for bad in record_set.bad] == [(2, "longer than 64 "), (4, "longer than 64 ")]


def test_the_rest_of_a_file_with_a_bad_record_is_counted_but_not_yielded(tmp_path: Path) -> None:
    stream = RecordStream(written(tmp_path / "a.jsonl", GOOD, b"3", GOOD, GOOD), on_bad_record="fail")
    lines = []
    with pytest.raises(DataError, match="1 of 4 records cannot be used"):
        for record in stream:
            lines.append(record.line)  # noqa: PERF401  # what comes before the error counts
    assert (lines, stream.num_good, stream.num_bad) == ([1], 3, 1)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow"])
def test_records_are_counted_without_being_parsed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    table = pyarrow.table({"prompt": ["Hi", "3", None], "response": ["Hello"] * 3})
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(table, path)
    elif name.endswith(".arrow"):
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        lines = b"\n".join([GOOD, b"", b"3", b"  \r", GOOD])
        path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    assert RecordStream(path, on_bad_record="skip").count() == 3
    path.write_bytes(b"\x1f\x8b no table" if name != "a.jsonl" else b"")
    assert RecordStream(path, on_bad_record="skip").count() == 0, "what is wrong with it is said when it is read"


def test_a_source_is_checked_whole(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", GOOD)
    written(tmp_path / "b.jsonl", GOOD, b"3")
    source = Source(str(tmp_path), tmp_path, ("a.jsonl", "b.jsonl"))
    check_source(source, on_bad_record="skip")
    with pytest.raises(DataError, match=r"1 of 2 records cannot be used(.|\n)*b\.jsonl, line 2"):
        check_source(source, on_bad_record="fail")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_stream_goes_on_where_another_was_left(name: str, tmp_path: Path) -> None:
    values: list[Any] = [*({"prompt": f"Hi {number}", "response": "Hello"} for number in range(6))]
    values[1] = values[4] = {"prompt": "", "response": ""}
    path = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path)
    else:
        content = b"\n".join([b"", *(json.dumps(value).encode() for value in values)])
        path.write_bytes(gzip.compress(content) if name == "a.jsonl.gz" else content)
    whole = RecordStream(path, on_bad_record="skip")
    records = list(whole)
    assert (whole.num_good, whole.num_bad) == (4, 2)
    for number in range(1, 5):
        left = RecordStream(path, on_bad_record="skip")
        first = list(islice(left, number))
        read = json.loads(json.dumps(left.read_so_far()))
        resumed = RecordStream(path, on_bad_record="skip")
        resumed.go_on(read)
        assert first + list(resumed) == records
        assert (resumed.num_good, resumed.num_bad, resumed.bad) == (4, 2, whole.bad)
