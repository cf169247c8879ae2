"""Bad data: files that are not what their names say, records that are no conversations, values of any size."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from security.bad_inputs import BadInput
from spin_components.data import records
from spin_components.store.sources import Sources

GOOD = {"prompt": "question", "response": "answer"}


def _turns(*turns: Any) -> dict[str, Any]:
    return {"messages": list(turns)}


def _turn(role: Any, content: Any = "text", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


USER, ASSISTANT = _turn("user"), _turn("assistant")

RECORDS: dict[str, tuple[Any, str]] = {
    "number": (1, r"line 1: the record is a number, expected an object"),
    "text": ("x", r"the record is a string"),
    "null": (None, r"the record is missing or null"),
    "empty": ({}, r"no known format has the keys found \(none\)"),
    "unknown keys": ({"question": "q", "answer": "a"}, r"keys found \('answer', 'question'\)"),
    "prompt is null": ({"prompt": None, "response": "r"}, r"keys found \('response'\)"),
    "prompt is a number": ({"prompt": 1, "response": "r"}, r"prompt is a number, expected"),
    "answer is empty": ({"prompt": "p", "response": " "}, r"the assistant's turn, is empty"),
    "answer is a table": ({"prompt": "p", "response": {}}, r"response is an object, expected"),
    "messages is text": ({"messages": "hi"}, r"messages is a string, expected a list of turns"),
    "no messages": ({"messages": []}, r"messages is an empty list"),
    "messages of text": (_turns("a", "b"), r"messages\[0\] is a string, expected an object"),
    "no role": (_turns({"content": "x"}, ASSISTANT), r"messages\[0\]\.role is missing or null"),
    "role is a list": (_turns(_turn([]), ASSISTANT), r"messages\[0\]\.role is a list"),
    "unknown role": (_turns(_turn("narrator"), ASSISTANT), r"messages\[0\]\.role is 'narrator'"),
    "20 MB role": (_turns(_turn("x" * (20 << 20)), ASSISTANT), r"role is 'x+ … \(\d+ characters left out\) … .*assist"),
    "20 MB of other roles": (_turns(USER, _turn("user", "y" * (20 << 20))), r"messages\[1\] has role 'user'"),
    "20 MB key": ({"z" * (20 << 20): 1}, r"keys found \('z+ … \(\d+ characters left out\)"),
    "tool": (_turns(USER, _turn("tool"), ASSISTANT), r"a tool's turn, expected"),
    "no answer": (_turns(USER), r"messages\[0\] has role 'user' at the end, expected 'assistant'"),
    "no question": (_turns(ASSISTANT), r"messages\[0\] has role 'assistant', expected 'user'"),
    "two questions": (_turns(USER, USER, ASSISTANT), r"messages\[1\] has role 'user', expected 'assistant'"),
    "content is a number": (_turns(_turn("user", 5), ASSISTANT), r"messages\[0\]\.content is a number"),
    "an image": (_turns(_turn("user", [{"type": "image"}]), ASSISTANT), r"type is 'image', expected 'text'"),
    "parts of text": (_turns(_turn("user", ["x"]), ASSISTANT), r"content\[0\] is a string, expected an object"),
    "tool calls": (_turns(USER, _turn("assistant", tool_calls=[{"id": 1}])), r"tool_calls is .*only turns of text"),
    "no weight": (_turns(USER, _turn("assistant", weight=0)), r"weight is 0, so the record's answer"),
    "speakers": ({"conversations": [{"from": "A", "value": "x"}]}, r"speakers \['A'\], expected"),
    "mask": ({"conversations": [{"from": "A", "value": "x"}], "mask": 3}, r"mask is a number"),
    "history": ({**GOOD, "history": "x"}, r"history is a string, expected a list"),
    "history of three": ({**GOOD, "history": [["a", "b", "c"]]}, r"history\[0\] is a list, expected a list of two"),
    "label": ({**GOOD, "label": False}, r"label is false"),
    "weight": ({**GOOD, "weight": 0.5}, r"weight is 0\.5"),
    "images": ({**GOOD, "images": ["x.png"]}, r"images = .*only text can be trained on"),
    "chosen alone": ({"chosen": "x"}, r"chosen is a string and there is no prompt"),
    "half a surrogate": ({"prompt": "p", "response": "\ud800x"}, r"half a surrogate pair"),
    "control characters": (_turns(_turn("\x1b[2J\x00"), ASSISTANT), r"role is '\\x1b\[2J\\x00'"),
    "markup": (_turns(_turn("[red]"), ASSISTANT), r"role is '\[red\]'"),
}
"""Single records, with the message."""

LINES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"hello\n", r"line 1: not valid JSON \(Expecting value at column 1\)"),
    "a comma too many": (b'{"a": 1},\n', r"take the comma away"),
    "an open object": (b'{"prompt": "p"\n', r"not valid JSON"),
    "an array": (b'[{"prompt": "p"}]\n', r"the file starts a JSON array"),
    "a deep nest": (b'{"a": ' + b"[" * 100_000 + b"\n", r"nested too deeply"),
    "not UTF-8": (b'{"prompt": "\xff"}\n', r"byte 13 is not UTF-8"),
    "UTF-16": ('{"prompt": "p"}'.encode("utf-16"), r"the file is UTF-16"),
    "UTF-32": ('{"prompt": "p"}'.encode("utf-32"), r"the file is UTF-32"),
    "nothing": (b"", r"holds no records"),
    "blank lines": (b"\n \n\n", r"holds no records"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", r"is a pointer of Git LFS"),
    "a long number": (b'{"prompt": ' + b"9" * 10_000 + b"}\n", r"line 1: "),
    "NaN": (b'{"prompt": NaN, "response": "r"}\n', r"prompt is a number"),
    "a huge line": (b'{"prompt": "' + b"p" * 5000 + b'", "response": "r"}\n', r"longer than \d+ MiB"),
    "a huge line without an end": (b'{"prompt": "' + b"p" * 5000, r"longer than \d+ MiB"),
}
"""Whole files of JSON lines, with the message; a line may have 2000 bytes."""


def _read(name: str, content: bytes) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        (folder / name).write_bytes(content)
        with patch.object(records, "MAX_LINE_BYTES", max(2000, len(content)) if len(content) > 99_999 else 2000):
            _open(folder / name)

    return use


def _open(path: Path) -> None:
    with Sources() as sources:
        records.check_source(sources.open_data(str(path), what="data.train"), on_bad_record="fail")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "data.jsonl")
    _open(folder / "data.jsonl")


def _socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # the name of a socket is short
        try:
            server.bind("data.jsonl")
        finally:
            os.chdir(here)
        _open(folder / "data.jsonl")


def _device(folder: Path) -> None:
    (folder / "data.jsonl").symlink_to("/dev/zero")
    _open(folder / "data.jsonl")


def _undecodable(folder: Path) -> None:
    (folder / os.fsdecode(b"train-\xff.jsonl")).write_text(json.dumps(GOOD))
    _open(folder)


def _table(suffix: str, table: pyarrow.Table) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        path = folder / f"data{suffix}"
        if suffix == ".parquet":
            pyarrow.parquet.write_table(table, path)
        else:
            with pyarrow.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table)
        _open(path)

    return use


def _text_of(*values: bytes) -> pyarrow.Array:
    """A column of strings that need not be UTF-8."""
    plain = pyarrow.array(values, pyarrow.binary())
    return pyarrow.Array.from_buffers(pyarrow.string(), len(plain), plain.buffers())


def _broken_parquet(folder: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["p"] * 99, "response": ["r"] * 99}), folder / "data.parquet")
    content = bytearray((folder / "data.parquet").read_bytes())
    content[4:60] = bytes(56)
    (folder / "data.parquet").write_bytes(content)
    _open(folder / "data.parquet")


UNREADABLE = pyarrow.table({"prompt": _text_of(b"\xff\xfe"), "response": ["r"]})

BAD_DATA = [
    *(
        BadInput(f"record: {name}", _read("data.jsonl", json.dumps(record).encode() + b"\n"), message)
        for name, (record, message) in RECORDS.items()
    ),
    *(BadInput(f"lines: {name}", _read("data.jsonl", content), message) for name, (content, message) in LINES.items()),
    BadInput("gzip: none", _read("data.jsonl.gz", b"plain"), r"cannot be read \(Not a gzipped file"),
    BadInput("gzip: cut", _read("data.jsonl.gz", gzip.compress(b"x" * 9999)[:-9]), r"cannot be read \("),
    BadInput("gzip: a line that grows", _read("data.jsonl.gz", gzip.compress(b"x" * (9 << 20), 1)), r"longer than"),
    BadInput("parquet: none", _read("data.parquet", b"PAR1 no"), r"after row 0: cannot be read .*expected a Parquet"),
    BadInput("parquet: empty file", _read("data.parquet", b""), r"after row 0: cannot be read"),
    BadInput("parquet: broken page", _broken_parquet, r"after row 0: cannot be read"),
    BadInput("parquet: text that is none", _table(".parquet", UNREADABLE), r"after row 0: cannot be read"),
    BadInput(
        "parquet: numbers", _table(".parquet", pyarrow.table({"prompt": [1], "response": ["r"]})), r"row 1: prompt"
    ),
    BadInput("parquet: no columns", _table(".parquet", pyarrow.table({"x": ["y"]})), r"row 1: no known format"),
    BadInput("arrow: none", _read("data.arrow", b"ARROW1\0\0"), r"cannot be read .*expected an Arrow stream"),
    BadInput("arrow: text that is none", _table(".arrow", UNREADABLE), r"after row 0: cannot be read"),
    BadInput("suffix", _read("data.csv", b"a,b"), r"has the suffix '\.csv', expected one of"),
    BadInput(
        "no data file", lambda folder: _open(folder / "none.jsonl"), r"does not exist, expected a JSONL or Parquet"
    ),
    BadInput("empty folder", _open, r"contains no data file"),
    BadInput("pipe", _pipe, r"is a pipe or a device, expected a regular file"),
    BadInput("socket", _socket, r"is a pipe or a device, expected a regular file"),
    BadInput("device", _device, r"is a pipe or a device, expected a regular file"),
    BadInput("name that is no text", _undecodable, r"'train-\\udcff\.jsonl' is not UTF-8 text; rename"),
]
