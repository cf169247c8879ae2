"""Filters for pairs that carry little training signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from spin_components.data.pair_counts import Cause
from spin_components.data.shards import Pair
from spin_components.settings import Settings


@dataclass(frozen=True, slots=True)
class Hygiene:
    """Criteria by which pairs are dropped.

    Attributes:
        eos_ids: an answer of these alone is empty.
        max_similarity: see `are_alike`; 1 drops identical answers only.
        max_length_ratio: tokens of the longer answer divided by those of the shorter; 0 is off.
        drop_truncated: whether answers that were cut are dropped.
    """

    eos_ids: frozenset[int]
    max_similarity: float = 1.0
    max_length_ratio: float = 0.0
    drop_truncated: bool = False

    @classmethod
    def of(cls, settings: Settings, eos_ids: Sequence[int]) -> Hygiene:
        """The criteria of a run's settings."""
        return cls(
            frozenset(eos_ids),
            settings.spin.max_similarity,
            settings.spin.max_length_ratio,
            settings.generation.on_truncated == "drop",
        )

    def cause(self, pair: Pair) -> Cause | None:
        """The first reason to drop a pair, in the order of `CAUSES`; None if it is kept."""
        lengths = len(pair.actual_ids), len(pair.generated_ids)
        if pair.is_empty(self.eos_ids):
            return "empty"
        if pair.is_identical:
            return "identical"
        if self.drop_truncated and pair.finish_reason == "length":
            return "truncated"
        if self.max_similarity < 1 and are_alike(pair.actual_ids, pair.generated_ids, self.max_similarity):
            return "near_identical"
        if self.max_length_ratio and max(lengths) > self.max_length_ratio * min(lengths):
            return "length_ratio"
        return None


def are_alike(one: Sequence[int], other: Sequence[int], similarity: float) -> bool:
    """Whether 1 - edit distance / length of the longer sequence is at least `similarity`.

    The distance is Levenshtein's over token ids: insertions, deletions and substitutions of one token each.
    """
    most = int((1 - similarity) * max(len(one), len(other)) + 1e-9)  # edits; 0.1 * 30 is a little less than 3
    return Levenshtein.distance(one, other, score_cutoff=most) <= most
