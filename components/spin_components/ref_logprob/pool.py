"""Selects the pairs that an iteration trains on: its own and those of the iterations before it, filtered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Levenshtein

from spin_components.algorithm.batching import permutation
from spin_components.data.pair_counts import CAUSES, HISTORY_CAUSES, Cause, PairCounts
from spin_components.data.shards import Pair
from spin_components.settings.settings import Settings


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


@dataclass(frozen=True, slots=True)
class Pool:
    """The pairs that are scored and trained on.

    Attributes:
        pairs: this iteration's, then those of the iteration before it, and so on.
        counts: of these pairs, and of those that were dropped.
    """

    pairs: list[Pair]
    counts: PairCounts


def origins(iteration: int, history: int) -> list[int]:
    """The iterations whose pairs are trained on, newest first."""
    return list(range(iteration, max(iteration - history, 0) - 1, -1))


def pool_pairs(
    own: Sequence[Pair],
    earlier: Sequence[Pair],
    hygiene: Hygiene,
    *,
    history_ratio: float | Literal["all"] = "all",
    seed: int = 0,
) -> Pool:
    """Select the pairs that an iteration trains on.

    Args:
        own: pairs generated in this iteration.
        earlier: pairs of earlier iterations, newest first. Of equal answers to the same prompt the newest is kept.
        hygiene: which pairs to drop.
        history_ratio: the most earlier pairs for each own one that is kept.
        seed: for drawing them.
    """
    dropped, left_out = Counter[str](), Counter[str]()
    kept: list[Pair] = []
    for pair in own:
        if cause := hygiene.cause(pair):
            dropped[cause] += 1
        else:
            kept.append(pair)
    seen = {_answer(pair) for pair in kept}
    history: list[Pair] = []
    for pair in earlier:
        if cause := hygiene.cause(pair):
            left_out[cause] += 1
        elif _answer(pair) in seen:
            left_out["duplicate"] += 1
        else:
            seen.add(_answer(pair))
            history.append(pair)
    if history_ratio != "all":
        limit = round(history_ratio * len(kept))
        left_out["not_drawn"] = max(0, len(history) - limit)
        history = [history[i] for i in sorted(permutation(len(history), seed)[:limit])]
    pairs = kept + history
    return Pool(
        pairs,
        PairCounts(
            num_pairs=len(pairs),
            num_history=len(history),
            num_by_origin=dict(Counter(pair.origin for pair in pairs)),
            num_dropped=sum(dropped.values()),
            dropped={name: dropped[name] for name in CAUSES},
            history_dropped={name: left_out[name] for name in HISTORY_CAUSES},
        ),
    )


def _answer(pair: Pair) -> tuple[int, tuple[int, ...]]:
    return pair.index, tuple(pair.generated_ids)
