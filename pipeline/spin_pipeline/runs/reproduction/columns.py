"""Rows of two runs compared by key, as columns of numbers: no token ids stay in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spin_components.data.stored_rows import stream_batches

Array = NDArray[Any]
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of N rows, ordered by key.

    Attributes:
        keys: of the rows, ascending, (N,).
        values: columns by name, (N,) each; lists and texts as digests.
    """

    keys: Array
    values: dict[str, Array]

    def without(self, keys: Array) -> Columns:
        """The rows with other keys."""
        kept = ~np.isin(self.keys, keys)
        return Columns(self.keys[kept], {name: column[kept] for name, column in self.values.items()})


def common(old: Columns, new: Columns, name: str) -> tuple[Array, Array, Array]:
    """Keys that both have, (M,), with both values of a column."""
    keys, places, new_places = np.intersect1d(old.keys, new.keys, return_indices=True)
    return keys, old.values[name][places], new.values[name][new_places]


def differing(old: Columns, new: Columns, name: str) -> Array:
    """Keys that only one has, or whose values in a column differ."""
    keys, values, new_values = common(old, new, name)
    return np.union1d(np.setxor1d(old.keys, new.keys), keys[values != new_values])


_INDEX_BITS, _NEWEST = 44, 2**16


def key_of(index: Any, origin: Any) -> Any:
    """A number for a pair's `Pair.key`, or numbers for arrays of them, which ascend in the order that files have."""
    return ((_NEWEST - np.int64(origin)) << _INDEX_BITS) + index


def index_of(key: int) -> int:
    """The index of a pair's key."""
    return key & ((1 << _INDEX_BITS) - 1)


def read_columns(
    path: Path | None, kind: type[Any], *, content: Sequence[str] = (), numbers: Sequence[str] = ()
) -> Columns:
    """Read a file of rows.

    Args:
        path: of the file; None for no rows.
        kind: of the rows.
        content: columns that become one column `content` of digests.
        numbers: columns of numbers.

    Returns: the columns; keys are those of `key_of` where rows have an origin, and else indices.

    Raises:
        IntegrityError: see `stream_batches`.
    """
    names = ["content", *numbers]
    parts: dict[str, list[Array]] = {name: [] for name in ["key", *names]}
    for batch in stream_batches([path] if path else [], kind):
        index = batch.column("index").to_numpy()
        has_origin = "origin" in batch.schema.names
        parts["key"].append(key_of(index, batch.column("origin").to_numpy()) if has_origin else np.array(index))
        parts["content"].append(_digests(batch, content))
        for name in numbers:
            parts[name].append(batch.column(name).to_numpy().astype(np.float64))
    columns = {name: np.concatenate(arrays) if arrays else np.zeros(0) for name, arrays in parts.items()}
    keys = columns["key"].astype(np.int64)
    order = np.argsort(keys, kind="stable")
    return Columns(keys[order], {name: columns[name][order] for name in names})


def _digests(batch: pa.RecordBatch, names: Sequence[str]) -> Array:
    rows = zip(*(batch.column(name).to_pylist() for name in names), strict=True)
    digests = [hashlib.blake2b(repr(row).encode(), digest_size=_DIGEST_BYTES).digest() for row in rows]
    return np.array(digests or [b""] * batch.num_rows, dtype=f"S{_DIGEST_BYTES}")
