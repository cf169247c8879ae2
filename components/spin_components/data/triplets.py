"""Pairs joined with the proto answers of T-SPIN: what iteration 0 generated to the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin_components.data.row_sequence import RowSequence
from spin_components.data.shards import Pair


class Triplets(RowSequence[Pair]):
    """Pairs with `Pair.proto_ids`.

    Args:
        pairs: N pairs.
        protos: pairs whose generated answers are the proto answers, or another order of the same.
        rows: for each pair, the index of its proto answer among `protos`; -1 for none, (N,).
    """

    def __init__(self, pairs: Sequence[Pair], protos: Sequence[Pair], rows: NDArray[np.integer[Any]]) -> None:
        self._pairs, self._protos, self._rows = pairs, protos, rows

    def __len__(self) -> int:
        return len(self._pairs)

    def _row(self, index: int) -> Pair:
        pair, row = self._pairs[index], int(self._rows[index])
        return pair if row < 0 else replace(pair, proto_ids=self._protos[row].generated_ids)

    @property
    def num_triplets(self) -> int:
        """Number of pairs that have a proto answer."""
        return int((self._rows >= 0).sum())
