"""Selects the pairs that an iteration trains on: its own and those of the iterations before it, filtered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spin_components.algorithm.order import permutation
from spin_components.data.pair_counts import CAUSES, HISTORY_CAUSES, PairCounts
from spin_components.data.shards import Pair
from spin_components.ref_logprob.hygiene import Hygiene


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
