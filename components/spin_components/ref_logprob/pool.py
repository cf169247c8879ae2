"""Selects the pairs that an iteration trains on: its own and those of the iterations before it, filtered."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from spin_components.algorithm.batching import permutation
from spin_components.data.pair_counts import CAUSES, HISTORY_CAUSES, Cause, PairCounts
from spin_components.data.shards import Pair
from spin_components.data.stored_rows import PickedRows
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

    pairs: Sequence[Pair]
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
    answers = bytearray()  # digests of the answers that are kept
    kept, history = _clean(own, hygiene, dropped, answers), _clean(earlier, hygiene, left_out, answers)
    seen = np.frombuffer(answers, dtype=f"S{_DIGEST_BYTES}")
    first = np.unique(seen, return_index=True)[1] - len(kept.rows)
    chosen = np.sort(first[first >= 0])  # of equal answers the first
    left_out["duplicate"] = len(history.rows) - len(chosen)
    if history_ratio != "all":
        limit = round(history_ratio * len(kept.rows))
        left_out["not_drawn"] = max(0, len(chosen) - limit)
        chosen = chosen[sorted(permutation(len(chosen), seed)[:limit])]
    return Pool(
        PickedRows([own, earlier], np.concatenate([kept.rows, len(own) + history.rows[chosen]])),
        PairCounts(
            num_pairs=len(kept.rows) + len(chosen),
            num_history=len(chosen),
            num_by_origin=dict(Counter([*kept.origins.tolist(), *history.origins[chosen].tolist()])),
            num_dropped=sum(dropped.values()),
            dropped={name: dropped[name] for name in CAUSES},
            history_dropped={name: left_out[name] for name in HISTORY_CAUSES},
        ),
    )


class _Clean(NamedTuple):
    """The pairs of a sequence that are not dropped.

    Attributes:
        rows: their indices in the sequence, (N,).
        origins: see `Pair`, (N,).
    """

    rows: NDArray[np.int32]
    origins: NDArray[np.int32]


def _clean(pairs: Sequence[Pair], hygiene: Hygiene, dropped: Counter[str], answers: bytearray) -> _Clean:
    """Look for what is to be dropped, and count it by cause; append digests of the other answers to `answers`."""
    rows, origins = array("i"), array("i")
    for row, pair in enumerate(pairs):
        if cause := hygiene.cause(pair):
            dropped[cause] += 1
        else:
            rows.append(row)
            origins.append(pair.origin)
            answers += _answer(pair)
    return _Clean(np.array(rows), np.array(origins))


def proto_rows(pairs: Sequence[Pair], protos: Sequence[Pair], hygiene: Hygiene) -> NDArray[np.int64]:
    """Find the proto answer of each pair: what iteration 0 generated to the same prompt.

    A pair has none where that answer is one that the criteria drop, or the pair's own generated answer, as in the pairs
    of iteration 0 that are trained on again.

    Args:
        pairs: N pairs to train on.
        protos: pairs that iteration 0 generated.
        hygiene: which of these not to use.

    Returns: indices among `protos`, -1 for none, (N,).
    """
    rows, indices, answers = array("q"), array("q"), bytearray()
    for row, proto in enumerate(protos):
        if not hygiene.cause(proto):
            rows.append(row)
            indices.append(proto.index)
            answers += _answer(proto)
    if not rows:
        return np.full(len(pairs), -1)
    wanted, own = array("q"), bytearray()
    for pair in pairs:
        wanted.append(pair.index)
        own += _answer(pair)
    order = np.argsort(np.array(indices), kind="stable")
    found = np.array(indices)[order]
    places = np.minimum(np.searchsorted(found, np.array(wanted, dtype=np.int64)), len(found) - 1)
    is_there = found[places] == np.array(wanted, dtype=np.int64)
    digests = [np.frombuffer(part, dtype=f"V{_DIGEST_BYTES}") for part in (own, answers)]
    is_own = digests[0] == digests[1][order][places]
    return np.where(is_there & ~is_own, np.array(rows)[order][places], -1)


_DIGEST_BYTES = 16


def _answer(pair: Pair) -> bytes:
    """Digest of the prompt's index and the generated answer."""
    ids = np.array([pair.index, *pair.generated_ids], dtype=np.int64)
    return hashlib.blake2b(ids.tobytes(), digest_size=_DIGEST_BYTES).digest()
