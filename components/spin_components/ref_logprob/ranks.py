"""Scoring of a shard by several processes of one machine, which divide its micro-batches by their tokens."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from spin_components.algorithm.batching import micro_batches
from spin_components.algorithm.shares import shares
from spin_components.data.row_columns import RowColumns
from spin_components.data.shard_writer import ShardWriter
from spin_components.data.shards import PAIR_SCHEMA, Pair, Score
from spin_components.ref_logprob.job import ScoringJob, Share
from spin_components.runtime.ranks import ALLOCATOR, launch
from spin_components.settings.settings import Settings


def score_in_ranks(
    folder: Path,
    pairs: Sequence[Pair],
    batches: Iterable[Sequence[int]],
    settings: Settings,
    ranks: int,
    *,
    is_sharded: bool = False,
    where: str,
    report: Callable[[int], None],
    with_protos: bool = False,
) -> RowColumns[Score]:
    """Score as `step.score_pairs`; a pair is computed in the same micro-batch as there.

    Args:
        folder: of the model, as `model.stored.open_scored` returns it.
        pairs: of one shard.
        batches: indices of pairs, by global batch.
        settings: of the run.
        ranks: number of processes.
        is_sharded: whether the model's weights are divided among them.
        where: for errors.
        report: called with the number of pairs done.
        with_protos: whether the scores have those of proto answers.

    Returns: the scores, in the order of the pairs.

    Raises:
        NonFiniteError: a log-probability is NaN or infinite; names the pairs.
        EngineError: a process failed.
    """
    batches = list(batches)
    lengths = [pair.num_tokens for pair in pairs]
    micros = _micro_batches(lengths, batches, settings)  # of indices
    costs = [sum(lengths[i] for i in micro) for micro in micros]
    scored = [[micros[number] for number in share] for share in shares(costs, ranks)]
    rows = [sorted(i for micro in share for i in micro) for share in scored]  # of each rank, its pairs' indices
    with tempfile.TemporaryDirectory(prefix="spin-scoring-") as temporary:
        paths = [Path(temporary, f"pairs-{rank:05d}.parquet") for rank in range(ranks)]
        for path, indices in zip(paths, rows, strict=True):
            _write_pairs(path, pairs, indices)
        parts = [
            Share(pairs=path, batches=_renumbered(micros_of_rank, indices), with_protos=with_protos)
            for path, micros_of_rank, indices in zip(paths, scored, rows, strict=True)
        ]
        job = ScoringJob(where=where, folder=folder, shares=parts, settings=settings, is_sharded=is_sharded)
        module = "spin_components.ref_logprob.rank"
        outcomes = launch(module, job, ranks, where=where, variables=ALLOCATOR, report=report)
    number_of = {i: number for number, batch in enumerate(batches) for i in batch}
    scores = RowColumns(Score, num_zeros=len(pairs))
    if with_protos:
        scores.set_column("ref_proto", np.full(len(pairs), np.nan))
    for indices, outcome in zip(rows, outcomes, strict=True):
        for i, (index, origin, actual, generated, proto) in zip(indices, outcome["scores"], strict=True):
            ref_proto = math.nan if proto is None else proto
            scores[i] = Score(index, actual, generated, number_of[i], origin, ref_proto=ref_proto)
    report(len(scores))
    return scores


_ROWS_WRITTEN = 256


def _write_pairs(path: Path, pairs: Sequence[Pair], indices: Sequence[int]) -> None:
    """Write some of the pairs, a part at a time."""
    with ShardWriter(path, PAIR_SCHEMA) as writer:
        for start in range(0, len(indices), _ROWS_WRITTEN):
            rows = [asdict(pairs[i]) for i in indices[start : start + _ROWS_WRITTEN]]
            writer.write(pa.RecordBatch.from_pylist(rows, schema=PAIR_SCHEMA))


def _micro_batches(
    lengths: Sequence[int], batches: Sequence[Sequence[int]], settings: Settings
) -> list[tuple[int, ...]]:
    """Indices of the pairs of every micro-batch of training, without those that fill a batch.

    With a budget of tokens, and where training has several ranks, of every global batch: how it is divided depends on
    whether the model packs, which the process that loads it finds out.

    A short batch is filled with its shortest pair, which is also the first of the pairs that it fills up: formed from
    its own pairs alone, a micro-batch is filled with the same.
    """
    training = settings.training
    if training.micro_batch_tokens or settings.hardware.world_size > 1:
        return [tuple(batch) for batch in batches]
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
