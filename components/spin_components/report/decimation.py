"""Long series made short without losing their peaks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def min_max(values: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Places to keep: the smallest and the largest value of each of `most // 2` parts, and both ends.

    Args:
        values: (N,), finite.
        most: how many to keep at the most, but for the ends; N or more keeps all.

    Returns: places in ascending order.
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
    """At most so many of the places 0 … num - 1, evenly spread; the first and the last among them."""
    return np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(np.int64)) if num else np.arange(0)
