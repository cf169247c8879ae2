"""Which pairs make up which batch: a pure function of seed, iteration and epoch, so that resuming needs no memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed for one purpose out of the run's seed; in [0, 2**31)."""
    text = ":".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 2**31


def permutation(num: int, seed: int) -> list[int]:
    """0 … num-1 in a seeded order."""
    return [int(index) for index in np.random.default_rng(seed).permutation(num)]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What is computed at a time.

    Attributes:
        pairs: indices of pairs; never empty, and as many in every micro-batch.
        weights: 1.0 for a pair, 0.0 for one repeated only to fill the batch.
    """

    pairs: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def is_filling(self) -> bool:
        """Whether nothing in it counts."""
        return not any(self.weights)


def form_batches(num_pairs: int, global_batch_size: int, seed: int) -> list[tuple[int, ...]]:
    """Shuffle pairs and cut them into global batches; the last may be smaller, no pair is left out.

    This is done once an iteration, when the reference is scored: a pair then keeps its neighbours, is padded alike
    in both passes, and rounds alike. In bf16 another batch shape moves the log-probability of an answer by some
    tenths of a nat, which would hide a real difference between policy and reference at step 0.

    Args:
        num_pairs: to share out.
        global_batch_size: pairs an optimizer step.
        seed: see `derive_seed`.
    """
    order = permutation(num_pairs, seed)
    return [tuple(order[start : start + global_batch_size]) for start in range(0, num_pairs, global_batch_size)]


def order_batches(num_batches: int, seed: int, limit: int | None = None) -> list[int]:
    """The order in which an epoch takes its global batches, at most `limit` of them."""
    return permutation(num_batches, seed)[:limit]


def micro_batches(
    batch: Sequence[int], lengths: Sequence[int], *, micro_batch_size: int, rank: int, ranks: int, num: int
) -> list[MicroBatch]:
    """One rank's share of a global batch, alike in length within each micro-batch.

    Args:
        batch: pair indices.
        lengths: tokens of each pair, by index.
        micro_batch_size: pairs a forward pass.
        rank: whose share, of `ranks`.
        ranks: training processes.
        num: micro-batches a rank; num * ranks * micro_batch_size >= len(batch).

    Returns: `num` micro-batches; a short batch is filled with its shortest pair at weight 0. What they hold does
        not depend on how many ranks share them.
    """
    ordered = sorted(batch, key=lambda index: (lengths[index], index))
    filling = num * ranks * micro_batch_size - len(ordered)
    pairs = [ordered[0]] * filling + ordered
    weights = [0.0] * filling + [1.0] * len(ordered)
    starts = range(rank * micro_batch_size, len(pairs), ranks * micro_batch_size)
    return [
        MicroBatch(tuple(pairs[start : start + micro_batch_size]), tuple(weights[start : start + micro_batch_size]))
        for start in starts
    ]
