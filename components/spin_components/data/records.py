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
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TypeAlias, TypedDict, cast

from spin_components.data.formats import FORMS, READ, Conversation, parse_record
from spin_components.data.tables import count_rows, read_table, unreadable
from spin_components.errors import ConfigError, DataError, clean
from spin_components.store.sources import DATA_SUFFIXES, Source

NUM_LISTED = 10
"""Number of bad records that are reported one by one."""

MAX_LINE_BYTES = 64 << 20  # of a line that is read

_LFS = b"version https://git-lfs.github.com/spec/"
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_TABLES = (".parquet", ".arrow")


class ReadSoFar(TypedDict):
    """How far a file has been read: the line of the last usable record, counts, and places and reasons of bad ones."""

    line: int
    num_good: int
    num_bad: int
    bad: list[tuple[int, str]]


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


_Parsed: TypeAlias = Conversation | str  # a conversation, or the reason why there is none
_ParsedLines: TypeAlias = Generator[tuple[int, _Parsed], None, None]  # with line numbers, from 1


class RecordStream:
    """The usable records of a data file, one after another: iterating reads the file.

    Nothing is yielded after the first bad record where that is an error, but the rest is read and counted.

    Args:
        path: local path of the file.
        address: name of the file in error messages; its path by default.
        on_bad_record: "fail" raises at the end if any record is bad, "skip" drops and counts bad records.
        max_records: stop after this many usable records; 0 reads all.

    Attributes, of what has been read:
        source: the address.
        num_good: number of usable records.
        num_bad: number of bad records.
        bad: the first `NUM_LISTED` of them.

    Raises:
        ConfigError: `on_bad_record` or `max_records` has another value.
        DataError: the file has no known suffix; when iterated: it cannot be read, has no usable record, or, with
            "fail", has a bad one.
    """

    def __init__(self, path: Path, *, on_bad_record: str, max_records: int = 0, address: str = "") -> None:
        if on_bad_record not in ("fail", "skip") or max_records < 0:
            raise ConfigError(
                f"reading {path}: on_bad_record is {on_bad_record!r} and max_records {max_records}, "
                "expected 'fail' or 'skip', and a number of records or 0 for all"
            )
        self.source, self._file = address or str(path), _check_suffix(path)
        self._fails, self._max_records = on_bad_record == "fail", max_records
        self.num_good = self.num_bad = 0
        self.bad: list[BadRecord] = []
        self._line = 0
        self._read: ReadSoFar = {"line": 0, "num_good": 0, "num_bad": 0, "bad": []}

    def read_so_far(self) -> ReadSoFar:
        """Return how far the file has been read, for `go_on`; valid between one record and the next."""
        bad = [(record.line, record.reason) for record in self.bad]
        return {"line": self._line, "num_good": self.num_good, "num_bad": self.num_bad, "bad": bad}

    def go_on(self, read: ReadSoFar) -> None:
        """Have the next iteration begin after what was read before; the lines of that are not parsed again."""
        self._read = read
        self._begin()

    def _begin(self) -> None:
        read = self._read
        self._line, self.num_good, self.num_bad = read["line"], read["num_good"], read["num_bad"]
        self.bad = [BadRecord(line, reason) for line, reason in read["bad"]]

    @property
    def unit(self) -> str:
        """What the number of a record counts: lines, or rows of a table."""
        return "row" if self._file.name.endswith(_TABLES) else "line"

    def count(self) -> int:
        """Number of records, good or bad, without parsing any; 0 where the file cannot be read."""
        try:
            if self.unit == "row":
                return count_rows(self._file)
            with _open(self._file) as stream:
                return sum(1 for raw in _lines(stream) if not raw.isspace())
        except _unreadable():
            return 0

    def __iter__(self) -> Iterator[Record]:
        self._begin()
        with closing(_parsed(self.source, self._file, self._line)) as parsed_lines:
            for line, parsed in parsed_lines:
                if isinstance(parsed, Conversation):
                    self.num_good += 1
                    self._line = line
                    if not (self._fails and self.num_bad):
                        yield Record(parsed, line)
                    if self.num_good == self._max_records:
                        break
                else:
                    self.num_bad += 1
                    if self.num_bad <= NUM_LISTED:
                        self.bad.append(BadRecord(line, clean(parsed)))
        if not self.num_good and not self.num_bad:
            raise DataError(f"{self.source} holds no records, expected at least one with the keys of one of: {FORMS}")
        if self.num_bad and (self._fails or not self.num_good):
            raise DataError(_bad_records_message(self.source, self.unit, self.bad, self.num_bad, self.num_good))


def _unreadable() -> tuple[type[Exception], ...]:
    """What is raised for files of any kind that cannot be read."""
    return EOFError, zlib.error, *unreadable()


def stream_source(source: Source, *, on_bad_record: str) -> list[RecordStream]:
    """The records of every file of a source, in order; see `RecordStream`."""
    return [RecordStream(path, address=uri, on_bad_record=on_bad_record) for uri, path in source.files.items()]


def check_source(source: Source, *, on_bad_record: str) -> None:
    """Read every record of a source and raise what `RecordStream` raises."""
    for stream in stream_source(source, on_bad_record=on_bad_record):
        for _ in stream:
            pass


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


def _parsed(source: str, file: Path, after: int) -> _ParsedLines:
    """What is on each line after that one."""
    return _parsed_rows(source, file, after) if file.name.endswith(_TABLES) else _parsed_lines(source, file, after)


def _parsed_lines(source: str, file: Path, after: int) -> _ParsedLines:
    first = not after
    try:
        with _open(file) as stream:
            _refuse_encoding(source, stream)
            for line, raw in islice(enumerate(_lines(stream), 1), after, None):
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


def _parsed_rows(source: str, file: Path, after: int) -> _ParsedLines:
    row = 0
    try:
        try:
            for record in read_table(file, None):
                row += 1
                if row > after:
                    yield row, _parse_row(record)
        except unreadable():
            num_read = row  # a column cannot be read: go on without those that no format reads
            for record in islice(read_table(file, READ), num_read, None):
                row += 1
                if row > after:
                    yield row, _parse_row(record)
    except unreadable() as error:
        with file.open("rb") as stream:
            _refuse_pointer(source, stream.read(64))
        reason = " ".join(str(error).split())
        expected = "a Parquet file" if file.suffix == ".parquet" else "an Arrow stream, as `save_to_disk` writes it"
        raise DataError(f"{source}, after row {row}: cannot be read ({reason}), expected {expected}") from error


def _parse_row(record: object) -> _Parsed:
    try:
        return parse_record(record)
    except ValueError as error:
        return str(error)
