"""Bad runs: records and pointers that hold something else, places that cannot be read or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from security.bad_inputs import SECRET, BadInput
from spin_components.store import layout
from spin_components.store.local import LocalRun

ATTEMPT = {"started_at": "2026-01-01T00:00:00+00:00", "started": 1.0, "deadline": None}


def _status(files: dict[str, bytes | dict[str, Any]], command: str = "status") -> Callable[[Path], list[str]]:
    """The status of a run with these files; a table is written as a run writes it, with its checksum."""

    def use(folder: Path) -> list[str]:
        run = LocalRun(folder / "run")
        run.write_json(layout.ATTEMPT, ATTEMPT)
        for key, content in files.items():
            if isinstance(content, bytes):
                run.write(key, content)
            else:
                run.write_json(key, content)
        return [command, run.uri]

    return use


def _manifest(**facts: Any) -> dict[str, Any]:
    return {"step": "checkpoint", "inputs": {}, "facts": facts, "version": "0"}


CONTENTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", r"is not JSON \("),
    "half": (b'{"iteration": 1', r"is not JSON \("),
    "a list": (b"[]", r"was changed after it was written"),
    "null": (b"null", r"was changed after it was written"),
    "a number": (b"1" * 9999, r"is not JSON|was changed after it was written"),
    "a deep nest": (b"[" * 100_000, r"is not JSON \("),
    "not UTF-8": (b"\xff\xfe\x00", r"is not JSON \("),
    "another's checksum": (b'{"iteration": 1, "checksum": "x"}', r"was changed after it was written"),
    "a checksum that is a list": (b'{"checksum": [1]}', r"was changed after it was written"),
    "NaN": (b'{"a": NaN, "checksum": "x"}', r"is not JSON|was changed after it was written"),
    "half a surrogate": (b'{"a": "\\ud800", "checksum": "x"}', r"is not JSON|was changed after it was written"),
    "NUL": (b"\0" * 99, r"is not JSON \("),
}
"""Content of a run's small files, with the message."""

POINTERS: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({}, r"best\.json is not what a run writes \(iteration: Field required"),
    "a list as iteration": ({"iteration": [], "uri": "x", "val_loss": 1.0}, r"iteration: Input should be a valid int"),
    "text as loss": ({"iteration": 0, "uri": "x", "val_loss": "low"}, r"val_loss: Input should be a valid number"),
    "no address": ({"iteration": 0, "uri": None, "val_loss": 1.0}, r"uri: Input should be a valid string"),
}
"""Pointers to the best model with a valid checksum, with the message."""


def _report(place: str) -> Callable[[Path], list[str]]:
    def use(folder: Path) -> list[str]:
        run = LocalRun(folder / "run")
        run.write_json(layout.ATTEMPT, ATTEMPT)
        return ["report", run.uri, "-o", place]

    return use


BAD_RUNS = [
    *(
        BadInput(f"{key}: {name}", _status({key: content}), message, exit_code=1)
        for key in ("attempt.json", "best.json")
        for name, (content, message) in CONTENTS.items()
    ),
    *(BadInput(f"best: {n}", _status({"best.json": table}), m, exit_code=1) for n, (table, m) in POINTERS.items()),
    BadInput("attempt: empty", _status({"attempt.json": {"a": 1}}), r"attempt\.json has no 'started', found a", 1),
    BadInput(
        "checkpoint: no facts",
        _status({"iterations/0/checkpoint.json": _manifest()}),
        r"checkpoint\.json is not what a run writes \(iteration: Field required",
        1,
    ),
    BadInput(
        "checkpoint: no manifest",
        _status({"iterations/0/checkpoint.json": {"step": 1}}),
        r"checkpoint\.json is not a manifest",
        1,
    ),
    BadInput("no run", lambda folder: ["status", str(folder)], r"no run at .*: it has no attempt\.json"),
    BadInput("no run to report", lambda folder: ["report", str(folder / "none")], r"report|run"),
    BadInput(
        "no run to export",
        lambda folder: ["export", str(folder / "none"), str(folder / "to")],
        r"no run|nothing to report yet|run\.json",
    ),
    BadInput(
        "no run to compare",
        lambda folder: ["compare", str(folder / "a"), str(folder / "b")],
        r"no run|nothing to report yet|run\.json",
    ),
    BadInput("no run to clean", lambda folder: ["gc", str(folder / "none")], r"no run|nothing to report yet|run\.json"),
    BadInput("no run to repeat", lambda folder: ["reproduce", str(folder / "none")], r"nothing to report yet"),
    BadInput("a file as run", lambda folder: ["status", _file(folder)], r"is a file; expected a folder"),
    BadInput(
        "an address that is no text", lambda folder: ["status", "/tmp/\udcff"], r"'/tmp/\\udcff' is not UTF-8 text"
    ),
    BadInput(
        "markup as run", lambda folder: ["status", f"{folder}/[red]x[/red]"], r"no run at .*/\[red\]x\[/red\]: it"
    ),
    BadInput("a report in a device", _report("/proc/report.html"), r"report|run"),
    BadInput("no command", lambda folder: ["explode"], r"invalid choice: 'explode'"),
    BadInput("no such option", lambda folder: ["status", "x", "--jsn"], r"unrecognized arguments: --jsn"),
    BadInput("a key as argument", lambda f: ["status", "x", f"https://u:{SECRET}@h"], r"arguments: https://\*\*\*@h"),
    BadInput(
        "export: no number", lambda f: ["export", str(f), str(f / "x"), "--iteration", "last"], r"last|no run|run\."
    ),
]


def _file(folder: Path) -> str:
    path = folder / "file"
    path.write_text(json.dumps({}))
    return str(path)
