"""Reader of W&B's offline files: records in LevelDB's log format, each a protobuf message."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _FILE_HEADER, _HEADER = 32768, 7, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the logged rows of all offline runs below a folder, oldest run first."""
    rows = []
    for record in _records(folder):
        if record.HasField("history"):
            items = record.history.item
            rows.append({(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items})
    return rows


def run_ids(folder: Path) -> list[str]:
    """The id of each offline run."""
    return [record.run.run_id for record in _records(folder) if record.HasField("run")]


def _records(folder: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    for path in sorted(folder.rglob("run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for content in _contents(path.read_bytes()):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(content)
            yield record


def _contents(data: bytes) -> Iterator[bytes]:
    position, parts = _FILE_HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
            return
        parts += data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""
