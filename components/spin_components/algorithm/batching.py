"""Seeded shuffling and batching of pairs, a pure function of seed, iteration and epoch: resuming needs no state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive an independent seed for one purpose from the run's seed; in [0, 2**31)."""
    text = ":".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 2**31


def permuted(num: int, seed: int) -> NDArray[np.int64]:
    """A seeded random permutation of 0 … num - 1, (num,)."""
    return np.random.default_rng(seed).permutation(num)


def permutation(num: int, seed: int) -> list[int]:
    """`permuted` as a list."""
    order: list[int] = permuted(num, seed).tolist()
    return order


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Pairs of one forward and backward pass.

    Attributes:
        pairs: indices of pairs; not empty.
        weights: 1.0 for a pair, 0.0 for a repeated one that only fills the batch.
    """

    pairs: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def is_filling(self) -> bool:
        """Whether all weights are 0."""
        return not any(self.weights)


class GlobalBatches(Sequence[tuple[int, ...]]):
    """Indices of the pairs of each global batch.

    Args:
        order: the indices of all pairs, batch after batch, (N,).
        ends: where each batch ends in `order`, (number of batches,).
    """

    def __init__(self, order: NDArray[np.integer[Any]], ends: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        self._order, self._ends = order.astype(np.int32), np.asarray(ends, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> tuple[int, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, ...] | list[tuple[int, ...]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = int(self._ends[index - 1]) if index else 0
        return tuple(self._order[start : int(self._ends[index])].tolist())

    def ordered(self, numbers: Sequence[int]) -> GlobalBatches:
        """Some of the batches, by their numbers, in that order."""
        parts = [self._order[self._ends[n - 1] if n else 0 : self._ends[n]] for n in numbers]
        ends = np.cumsum([len(part) for part in parts])
        return GlobalBatches(np.concatenate(parts) if parts else self._order[:0], ends)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def form_batches(num_pairs: int, global_batch_size: int, seed: int) -> GlobalBatches:
    """Shuffle pairs and split them into global batches; the last may be smaller, no pair is left out.

    Done once an iteration, when the reference is scored: reference and policy then compute a pair in the same batch,
    with the same padding and rounding. In bf16 another batch shape changes the log-probability of an answer by some
    tenths of a nat, which would hide a real difference between policy and reference at step 0.

    Args:
        num_pairs: number of pairs.
        global_batch_size: pairs in an optimizer step.
        seed: see `derive_seed`.
    """
    order = np.random.default_rng(seed).permutation(num_pairs)  # that of `permutation`
    return GlobalBatches(order, [*range(global_batch_size, num_pairs, global_batch_size), *[num_pairs][:num_pairs]])


def order_batches(num_batches: int, seed: int, limit: int | None = None) -> list[int]:
    """Indices of the global batches in an epoch's order, at most `limit` of them."""
    return permutation(num_batches, seed)[:limit]


Lengths = Sequence[int] | Mapping[int, int] | NDArray[np.integer[Any]]
"""Tokens of pairs, by index."""


def micro_batches(
    batch: Sequence[int], lengths: Lengths, *, micro_batch_size: int, rank: int, ranks: int, num: int
) -> list[MicroBatch]:
    """One rank's micro-batches of a global batch, each of pairs of similar length.

    Args:
        batch: indices of pairs.
        lengths: tokens of each pair, by index.
        micro_batch_size: pairs in a forward pass.
        rank: index of the rank, below `ranks`.
        ranks: number of training processes.
        num: micro-batches of each rank; num * ranks * micro_batch_size >= len(batch).

    Returns: `num` micro-batches; a short batch is filled with its shortest pair at weight 0. The micro-batches of all
        ranks together do not depend on the number of ranks.
    """
    pairs, weights = filled(batch, lengths, num * ranks * micro_batch_size)
    starts = range(rank * micro_batch_size, len(pairs), ranks * micro_batch_size)
    return [
        MicroBatch(tuple(pairs[start : start + micro_batch_size]), tuple(weights[start : start + micro_batch_size]))
        for start in starts
    ]


def balanced_micro_batches(
    batch: Sequence[int], lengths: Lengths, *, micro_batch_size: int, rank: int, ranks: int, num: int
) -> list[MicroBatch]:
    """One rank's micro-batches of a global batch, where all ranks, and their micro-batches, have as many tokens.

    For layouts without padding, where a micro-batch costs what its pairs cost together. Arguments as in
    `micro_batches`; which pairs meet depends on the number of ranks.

    Returns: `num` micro-batches, those with the fewest tokens first; filled as in `micro_batches`.
    """
    pairs, weights = filled(batch, lengths, num * ranks * micro_batch_size)
    costs = np.array([int(lengths[pair]) for pair in pairs])
    mine = deal(costs, ranks)[rank]
    parts = [mine[part] for part in deal(costs[mine], num)]
    return [
        MicroBatch(tuple(pairs[i] for i in part), tuple(weights[i] for i in part))
        for part in sorted(parts, key=lambda part: int(costs[part].sum()))
    ]


def filled(batch: Sequence[int], lengths: Lengths, num: int) -> tuple[list[int], list[float]]:
    """A batch by length, filled up to `num` pairs with its shortest one; and the weight of each."""
    ordered = sorted(batch, key=lambda index: (lengths[index], index))
    filling = num - len(ordered)
    return [ordered[0]] * filling + ordered, [0.0] * filling + [1.0] * len(ordered)


_BALANCE = 0.01
"""Difference of the costs of two shares, relative to their mean, at which `deal` stops."""


def deal(costs: NDArray[np.int64], num: int) -> list[NDArray[np.int64]]:
    """Divide items into shares of as many items each and, where their costs permit, of the same cost.

    The longest item goes to the cheapest share that has room, and so on; then the dearest and the cheapest share swap
    the two items that bring them closest, until none do.

    Args:
        costs: of the items, (N,), where `num` divides N.
        num: number of shares.

    Returns: indices of the items of each share, ascending, (N / num,) each.
    """
    room = len(costs) // num
    shares: list[list[int]] = [[] for _ in range(num)]
    sums = np.zeros(num, dtype=np.int64)
    for item in np.argsort(-costs, kind="stable").tolist():
        share = min((i for i in range(num) if len(shares[i]) < room), key=lambda i: (int(sums[i]), i))
        shares[share].append(item)
        sums[share] += costs[item]
    for _ in range(len(costs)):
        dearest, cheapest = int(sums.argmax()), int(sums.argmin())
        gap = int(sums[dearest] - sums[cheapest])
        if gap <= _BALANCE * costs.sum() / num:
            break
        changes = np.subtract.outer(costs[shares[dearest]], costs[shares[cheapest]])  # (room, room)
        remains = np.where((changes > 0) & (changes < gap), np.abs(gap - 2 * changes), gap)
        i, j = divmod(int(remains.argmin()), room)
        if remains[i, j] >= gap:
            break
        sums[dearest] -= changes[i, j]
        sums[cheapest] += changes[i, j]
        shares[dearest][i], shares[cheapest][j] = shares[cheapest][j], shares[dearest][i]
    return [np.sort(np.array(share, dtype=np.int64)) for share in shares]


LOGITS_BYTES = 256 * 2**20
"""Size of one chunk of float32 logits."""


def logit_chunk(vocabulary: int, chunk_bytes: int = LOGITS_BYTES) -> int:
    """Number of tokens whose float32 logits fit `chunk_bytes`, at least one."""
    return max(1, chunk_bytes // (4 * vocabulary))
