"""Scoring of a shard by several processes of one machine, which divide its micro-batches by their tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from spin_components.algorithm.batching import micro_batches
from spin_components.algorithm.shares import shares
from spin_components.data.row_columns import RowColumns
from spin_components.data.shards import Pair, Score, write_rows
from spin_components.ref_logprob.job import ScoringJob, Share
from spin_components.runtime.ranks import ALLOCATOR, launch
from spin_components.settings.settings import Settings
from spin_components.settings.training import TrainingSettings


def score_in_ranks(
    folder: Path,
    pairs: Sequence[Pair],
    batches: Sequence[Sequence[int]],
    settings: Settings,
    ranks: int,
    *,
    where: str,
    report: Callable[[int], None],
) -> RowColumns[Score]:
    """Score as `step.score_pairs`; a pair is computed in the same micro-batch as there.

    Args:
        folder: of the model, as `model.stored.open_scored` returns it.
        pairs: of one shard.
        batches: indices of pairs, by global batch.
        settings: of the run.
        ranks: number of processes.
        where: for errors.
        report: called with the number of pairs done.

    Returns: the scores, in the order of the pairs.

    Raises:
        NonFiniteError: a log-probability is NaN or infinite; names the pairs.
        EngineError: a process failed.
    """
    lengths = [pair.num_tokens for pair in pairs]
    micros = _micro_batches(lengths, batches, settings.training)  # of indices
    costs = [sum(lengths[i] for i in micro) for micro in micros]
    scored = [[micros[number] for number in share] for share in shares(costs, ranks)]
    rows = [sorted(i for micro in share for i in micro) for share in scored]  # of each rank, its pairs' indices
    with tempfile.TemporaryDirectory(prefix="spin-scoring-") as temporary:
        paths = [Path(temporary, f"pairs-{rank:05d}.parquet") for rank in range(ranks)]
        for path, indices in zip(paths, rows, strict=True):
            write_rows(path, Pair, [pairs[i] for i in indices])
        parts = [
            Share(pairs=path, batches=_renumbered(micros_of_rank, indices))
            for path, micros_of_rank, indices in zip(paths, scored, rows, strict=True)
        ]
        job = ScoringJob(where=where, folder=folder, shares=parts, settings=settings)
        module = "spin_components.ref_logprob.rank"
        outcomes = launch(module, job, ranks, where=where, variables=ALLOCATOR, report=report)
    number_of = {i: number for number, batch in enumerate(batches) for i in batch}
    scores = RowColumns(Score, num_zeros=len(pairs))
    for indices, outcome in zip(rows, outcomes, strict=True):
        for i, (actual, generated) in zip(indices, outcome["scores"], strict=True):
            pair = pairs[i]
            scores[i] = Score(pair.index, actual, generated, number_of[i], pair.origin)
    report(len(scores))
    return scores


def _micro_batches(
    lengths: Sequence[int], batches: Sequence[Sequence[int]], training: TrainingSettings
) -> list[tuple[int, ...]]:
    """Indices of the pairs of every micro-batch of training, without those that fill a batch.

    A short batch is filled with its shortest pair, which is also the first of the pairs that it fills up: formed from
    its own pairs alone, a micro-batch is filled with the same.
    """
    size = training.micro_batch_size
    formed = (
        micro_batches(batch, lengths, micro_batch_size=size, rank=0, ranks=1, num=training.global_batch_size // size)
        for batch in batches
    )
    micros = [micro for batch in formed for micro in batch if not micro.is_filling]
    return [tuple(i for i, weight in zip(micro.pairs, micro.weights, strict=True) if weight) for micro in micros]


def _renumbered(micros: Sequence[Sequence[int]], indices: Sequence[int]) -> list[tuple[int, ...]]:
    """Micro-batches by the places of their pairs among `indices`; ascending indices keep the order of equal lengths."""
    place_of = {index: place for place, index in enumerate(indices)}
    return [tuple(place_of[i] for i in micro) for micro in micros]
