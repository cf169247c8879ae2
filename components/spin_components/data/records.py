"""Data files read as streams: every record is validated, and bad ones are reported with their line.

A file is JSON lines (`.jsonl`, `.json`, either with `.gz`), Parquet (`.parquet`), or Arrow (`.arrow`, as the library
`datasets` saves it); for the records see `formats`.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, TypeAlias, cast

from spin_components.data.formats import FORMS, READ, Conversation, parse_record
from spin_components.errors import ConfigError, DataError, clean
from spin_components.store.sources import DATA_SUFFIXES, Source

NUM_LISTED = 10
"""Number of bad records that are reported one by one."""

MAX_LINE_BYTES = 64 << 20  # of a line that is read

_ROWS_A_BATCH = 1024
_LFS = b"version https://git-lfs.github.com/spec/"
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_TABLES = (".parquet", ".arrow")


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation and its line in the file (row, in Parquet or Arrow), from 1."""

    conversation: Conversation
    line: int


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A line of the file (row, in Parquet or Arrow) without a usable conversation, and the reason."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class RecordSet:
    """Content of a data file.

    Attributes:
        source: address of the file, for messages.
        records: usable records, in the file's order.
        num_bad: number of bad records.
        bad: the first `NUM_LISTED` of them.
    """

    source: str
    records: tuple[Record, ...]
    num_bad: int
    bad: tuple[BadRecord, ...]


_Parsed: TypeAlias = Conversation | str  # a conversation, or the reason why there is none
_ParsedLines: TypeAlias = Generator[tuple[int, _Parsed], None, None]  # with line numbers, from 1


def read_source(source: Source, *, on_bad_record: str) -> list[RecordSet]:
    """Read and validate every file of a source; see `read_records`."""
    return [read_records(path, address=uri, on_bad_record=on_bad_record) for uri, path in source.files.items()]


def read_records(path: Path, *, on_bad_record: str, max_records: int = 0, address: str = "") -> RecordSet:
    """Read and validate a data file.

    Args:
        path: local path of the file.
        address: name of the file in error messages; its path by default.
        on_bad_record: "fail" raises if any record is bad, "skip" drops and counts bad records.
        max_records: stop after this many usable records; 0 reads all.

    Raises:
        ConfigError: `on_bad_record` or `max_records` has another value.
        DataError: the file cannot be read, has no usable record, or, with "fail", has a bad one.
    """
    if on_bad_record not in ("fail", "skip") or max_records < 0:
        raise ConfigError(
            f"reading {path}: on_bad_record is {on_bad_record!r} and max_records {max_records}, "
            "expected 'fail' or 'skip', and a number of records or 0 for all"
        )
    source, file = address or str(path), _check_suffix(path)
    records: list[Record] = []
    bad: list[BadRecord] = []
    num_bad = 0
    unit = "row" if file.name.endswith(_TABLES) else "line"
    with closing(_parsed(source, file)) as parsed_lines:
        for line, parsed in parsed_lines:
            if isinstance(parsed, Conversation):
                records.append(Record(parsed, line))
                if len(records) == max_records:
                    break
            else:
                num_bad += 1
                if num_bad <= NUM_LISTED:
                    bad.append(BadRecord(line, clean(parsed)))
    if not records and not num_bad:
        raise DataError(f"{source} holds no records, expected at least one with the keys of one of: {FORMS}")
    if num_bad and (on_bad_record == "fail" or not records):
        raise DataError(_bad_records_message(source, unit, bad, num_bad, len(records)))
    return RecordSet(source, tuple(records), num_bad, tuple(bad))


def _bad_records_message(source: str, unit: str, bad: list[BadRecord], num_bad: int, num_good: int) -> str:
    lines = [f"{source}, {unit} {record.line}: {record.reason}" for record in bad]
    if num_bad > len(bad):
        lines.append(f"... and {num_bad - len(bad)} more")
    advice = "Correct or remove them" + (", or set data.on_bad_record to 'skip'." if num_good else ".")
    return f"{num_bad} of {num_bad + num_good} records cannot be used. {advice}\n  " + "\n  ".join(lines)


def _check_suffix(file: Path) -> Path:
    """Return the file if its suffix is one of a known format.

    Raises:
        DataError: it is not.
    """
    if not file.name.endswith(DATA_SUFFIXES):
        raise DataError(
            f"{file} has the suffix {file.suffix!r}, expected one of {', '.join(DATA_SUFFIXES)}; "
            "convert or rename the file"
        )
    return file


def _parsed(source: str, file: Path) -> _ParsedLines:
    return _parsed_rows(source, file) if file.name.endswith(_TABLES) else _parsed_lines(source, file)


def _parsed_lines(source: str, file: Path) -> _ParsedLines:
    first = True
    try:
        with _open(file) as stream:
            _refuse_encoding(source, stream)
            for line, raw in enumerate(_lines(stream), 1):
                if line == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                raw = raw.strip()
                if not raw:
                    continue
                if first and raw.startswith(b"["):
                    raise DataError(
                        f"{source}, line {line}: the file starts a JSON array, expected one JSON object a line; "
                        "convert it to JSON lines"
                    )
                first = False
                yield line, _parse_line(raw) if len(raw) <= MAX_LINE_BYTES else _TOO_LONG
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} cannot be read ({error}), expected a readable file of JSON lines") from error


_TOO_LONG = f"longer than {MAX_LINE_BYTES >> 20} MiB, expected one JSON object with a conversation"


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of one that is too long, as much as shows that."""
    while raw := stream.readline(MAX_LINE_BYTES + 2):
        yield raw
        while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            raw = stream.readline(MAX_LINE_BYTES + 2)


def _refuse_encoding(source: str, stream: IO[bytes]) -> None:
    """Refuse a file that is no UTF-8 text as a whole, by its first bytes; leaves the stream at its beginning.

    Raises:
        DataError: it is UTF-16 or UTF-32, or a pointer of Git LFS.
    """
    head = stream.read(64)
    stream.seek(0)
    _refuse_pointer(source, head)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "")
    if not encoding and b"\0" in head[:4]:
        encoding = "UTF-16LE" if head[1:2] == b"\0" else "UTF-16BE"
    if encoding:
        raise DataError(
            f"{source}, line 1: the file is {encoding}, expected UTF-8 text; convert it: "
            f"iconv -f {encoding} -t UTF-8 {Path(source).name} > new.jsonl"
        )


def _refuse_pointer(source: str, head: bytes) -> None:
    if head.startswith(_LFS):
        raise DataError(f"{source} is a pointer of Git LFS, expected the file itself; fetch it with `git lfs pull`")


def _open(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")


def _parse_line(raw: bytes) -> _Parsed:
    try:
        conversation = parse_record(json.loads(raw.decode("utf-8")))
        if b"\\u" in raw:
            _refuse_surrogates(conversation)
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} is not UTF-8 ({error.reason}), expected UTF-8 text"
    except json.JSONDecodeError as error:
        return f"not valid JSON ({error.msg} at column {error.colno}), expected one JSON object{_comma(raw)}"
    except RecursionError:
        return "nested too deeply to be read, expected one JSON object with a conversation"
    except ValueError as error:
        return str(error)
    return conversation


def _comma(raw: bytes) -> str:
    """What to do about a comma too many, where that is what is wrong with a line."""
    if raw.endswith(b","):
        return " without a comma after it; take the comma away (JSON lines have none between them)"
    return "; take away the comma before its closing bracket" if re.search(rb",\s*[}\]]", raw) else ""


def _refuse_surrogates(conversation: Conversation) -> None:
    """Raise ValueError for unpaired surrogates, which JSON escapes can express but which have no UTF-8 encoding."""
    for text in (conversation.answer, *(message.content for message in conversation.prompt)):
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"character {error.start + 1} of a turn is {text[error.start]!a}, half a surrogate pair, "
                    "expected whole characters"
                ) from error


def _parsed_rows(source: str, file: Path) -> _ParsedLines:
    row = 0
    try:
        try:
            for record in _records(file, None):
                row += 1
                yield row, _parse_row(record)
        except _unreadable():
            num_read = row  # a column cannot be read: go on without those that no format reads
            for record in islice(_records(file, READ), num_read, None):
                row += 1
                yield row, _parse_row(record)
    except _unreadable() as error:
        with file.open("rb") as stream:
            _refuse_pointer(source, stream.read(64))
        reason = " ".join(str(error).split())
        expected = "a Parquet file" if file.suffix == ".parquet" else "an Arrow stream, as `save_to_disk` writes it"
        raise DataError(f"{source}, after row {row}: cannot be read ({reason}), expected {expected}") from error


def _unreadable() -> tuple[type[Exception], ...]:
    """What pyarrow raises for files, columns and values that it cannot read."""
    import pyarrow

    return OSError, ValueError, OverflowError, NotImplementedError, pyarrow.ArrowException


def _records(file: Path, columns: Collection[str] | None) -> Iterator[object]:
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


def _parse_row(record: object) -> _Parsed:
    try:
        return parse_record(record)
    except ValueError as error:
        return str(error)
