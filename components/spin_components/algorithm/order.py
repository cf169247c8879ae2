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
    """What one rank computes at a time.

    Attributes:
        pairs: indices of pairs; never empty, and as many in every micro-batch of a plan.
        weights: 1.0 for a pair, 0.0 for one repeated only to fill the batch.
    """

    pairs: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The global batches of one epoch, each a list of pair indices."""

    batches: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.batches)


def plan_epoch(num_pairs: int, global_batch_size: int, seed: int, limit: int | None = None) -> EpochPlan:
    """Shuffle the pairs and cut them into global batches; the last may be smaller, no pair is left out.

    Args:
        num_pairs: of the iteration.
        global_batch_size: pairs an optimizer step.
        seed: of this epoch; see `derive_seed`.
        limit: keep only so many batches.
    """
    order = permutation(num_pairs, seed)
    batches = [tuple(order[start : start + global_batch_size]) for start in range(0, num_pairs, global_batch_size)]
    return EpochPlan(tuple(batches[:limit]))


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

    Returns: `num` micro-batches; a short batch is filled with its shortest pair at weight 0.
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
