"""Weights that bitsandbytes stored in 4 bits, as the weights that they stand for.

It stores a matrix as bytes of two codes each, of another shape, and beside it tensors with the scales and one with the
matrix's shape and type as JSON: `NAME.absmax`, `NAME.quant_map`, `NAME.quant_state.bitsandbytes__nf4` and others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from spin_components.errors import ModelError
from spin_components.store.model_files import StoredWeight, read_headers

_STATE = ".quant_state.bitsandbytes__"


def original_weights(files: Sequence[Path]) -> dict[str, StoredWeight]:
    """Read the headers of a model's files, with weights stored in 4 bits as the float32 matrices that they stand for.

    Raises:
        ModelError: a header is not valid, or what is stored of a matrix is no JSON with its shape.
    """
    stored = read_headers(files)
    states = {name: name.partition(_STATE)[0] for name in stored if _STATE in name}
    if not states:
        return stored
    shapes = {weight: _shape(files, name) for name, weight in states.items()}
    beside = tuple(f"{weight}." for weight in shapes)
    return {
        name: StoredWeight("F32", shapes[name]) if name in shapes else weight
        for name, weight in stored.items()
        if not name.startswith(beside)
    }


def _shape(files: Sequence[Path], name: str) -> tuple[int, ...]:
    for path in files:
        with safe_open(path, framework="np") as file:
            if name in file.keys():  # noqa: SIM118 - the file is no mapping
                try:
                    return tuple(int(size) for size in json.loads(bytes(file.get_tensor(name)))["shape"])
                except (ValueError, KeyError, TypeError) as error:
                    raise ModelError(f"{path}: {name} has no shape of a matrix; download the model again") from error
    raise ModelError(f"{name} is in none of the model's files; download the model again")
