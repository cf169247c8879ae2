"""Safetensors files with a header and no numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_header(path: Path, shapes: Mapping[str, Sequence[int]], *, dtype: str = "F32", num_bytes: int = 0) -> None:
    """Write a file whose header names tensors of these shapes, and `num_bytes` zeros that hold them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    header |= {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": [0, num_bytes]} for name, shape in shapes.items()
    }
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_bytes))
