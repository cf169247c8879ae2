"""A sequence whose rows are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar, overload

Row = TypeVar("Row")


class RowSequence(Sequence[Row], Generic[Row]):
    """Rows that `_row` makes one at a time; a slice is a list of them."""

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._row(i) for i in range(*index.indices(len(self)))]
        return self._row(index)

    @abstractmethod
    def _row(self, index: int) -> Row:
        """The row of an index, which may be negative.

        Raises:
            IndexError: there is none.
        """
