"""Decimation of long series for charts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def min_max(values: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Return indices of the minimum and maximum of each of `most // 2` parts of a series, and of both ends.

    Args:
        values: (N,), finite.
        most: maximum number of indices, not counting the ends; if N or more, all are returned.

    Returns: indices in ascending order.
    """
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), most // 2 + 1).astype(np.int64)
    kept = {0, len(values) - 1}
    for start, end in pairwise(edges):
        part = values[start:end]
        kept |= {int(start + part.argmin()), int(start + part.argmax())}
    return np.array(sorted(kept), dtype=np.int64)


def evenly(num: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` evenly spaced indices of 0 … num - 1, including the first and the last."""
    return np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(np.int64)) if num else np.arange(0)
