"""Counts of an iteration's training pairs, by the iteration they were generated in, and of dropped pairs by cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Key = TypeVar("Key", int, str)
Cause = Literal["empty", "identical", "truncated", "near_identical", "length_ratio"]
CAUSES: tuple[Cause, ...] = ("empty", "identical", "truncated", "near_identical", "length_ratio")
"""Causes for dropping a pair; a pair with several is counted under the first."""
HISTORY_CAUSES = (*CAUSES, "duplicate", "not_drawn")
"""Causes for dropping a pair of an earlier iteration."""

_WORDS = {
    "empty": "empty",
    "identical": "the human's own",
    "truncated": "cut (generation.on_truncated)",
    "near_identical": "nearly the human's own (spin.max_similarity)",
    "length_ratio": "too unlike in length (spin.max_length_ratio)",
    "duplicate": "played alike since",
    "not_drawn": "not drawn (spin.history_ratio)",
}


class PairCounts(BaseModel):
    """Counts of pairs, as stored in manifests.

    Attributes:
        num_pairs: pairs to train on.
        num_history: those of them generated in earlier iterations.
        num_by_origin: `num_pairs` by the iteration that generated them.
        num_dropped: dropped pairs of this iteration; together with `num_pairs - num_history`, all it generated.
        dropped: `num_dropped` by cause.
        history_dropped: dropped pairs of earlier iterations, by cause.
        num_triplets: pairs to train on that have a proto answer, see `data.triplets`; None where the objective uses
            none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_pairs: int = 0
    num_history: int = 0
    num_by_origin: dict[int, int] = Field(default_factory=dict)
    num_dropped: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    history_dropped: dict[str, int] = Field(default_factory=dict)
    num_triplets: int | None = None


def add_up(parts: Iterable[PairCounts]) -> PairCounts:
    """Sum the counts of the shards of an iteration."""
    counts = list(parts)
    triplets = [part.num_triplets for part in counts if part.num_triplets is not None]
    return PairCounts(
        num_pairs=sum(part.num_pairs for part in counts),
        num_history=sum(part.num_history for part in counts),
        num_by_origin=_add(part.num_by_origin for part in counts),
        num_dropped=sum(part.num_dropped for part in counts),
        dropped=_add(part.dropped for part in counts),
        history_dropped=_add(part.history_dropped for part in counts),
        num_triplets=sum(triplets) if triplets else None,
    )


def _add(tables: Iterable[Mapping[Key, int]]) -> dict[Key, int]:
    total: dict[Key, int] = {}
    for table in tables:
        for key, number in table.items():
            total[key] = total.get(key, 0) + number
    return total


def in_words(dropped: Mapping[str, int]) -> str:
    """Format counts by cause for people, e.g. `2 empty, 1 the human's own`; empty where all counts are 0."""
    return ", ".join(f"{number:,} {_WORDS.get(cause, cause)}" for cause, number in dropped.items() if number)
