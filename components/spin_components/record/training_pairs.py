"""Reads the pairs that an iteration trains on, with their scores under the reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin_components.algorithm.batching import GlobalBatches
from spin_components.data.pair_counts import PairCounts, add_up, in_words
from spin_components.data.row_columns import RowColumns
from spin_components.data.shards import Pair, Score
from spin_components.data.stored_rows import PickedRows, StoredRows, read_numbers
from spin_components.errors import DataError, IntegrityError
from spin_components.record.pairs import ScoredPairs, fetch_rows, scored_generations, shard_manifests
from spin_components.store.base import RunStore
from spin_components.store.manifests import Manifest

Ints = NDArray[np.integer[Any]]
_LENGTHS = ("prompt_ids", "actual_ids", "generated_ids")


@dataclass(frozen=True, slots=True)
class TrainingPairs:
    """The N pairs that an iteration trains on, as numbers; their token ids stay in files until `read`.

    Attributes:
        scores: shard after shard; in each the iteration's own pairs by index, then those of the iterations before it.
        num_tokens: see `Pair.num_tokens`, (N,).
        num_prompt: tokens of the prompt, (N,).
        batches: indices of pairs, by global batch, as they were scored.
        counts: of the pairs by origin, and of those dropped.
        files: local Parquet files of the generations.
        rows: each pair's row, counted through the files, (N,).
        num_rows: of the files.
        scratch: folder for local files.
    """

    scores: RowColumns[Score]
    num_tokens: Ints
    num_prompt: Ints
    batches: GlobalBatches
    counts: PairCounts
    files: list[Path]
    rows: Ints
    num_rows: int
    scratch: Path

    def read(self, indices: Iterable[int]) -> ScoredPairs:
        """Read the token ids of some pairs into a local file.

        Args:
            indices: of the pairs, among all.

        Returns: the pairs under the same indices; those that were not read cannot be asked for.
        """
        held = np.zeros(self.num_rows, dtype=np.bool_)
        for index in indices:
            held[self.rows[index]] = True
        places = np.cumsum(held, dtype=np.int32) - 1  # of each row of the files within the local file
        stored = StoredRows(self.files, Pair, self.scratch, held)
        places[~held] = len(stored)
        return ScoredPairs(PickedRows([stored], places[self.rows]), self.scores, self.batches, self.counts)


@dataclass(frozen=True, slots=True)
class _Shard:
    """The same of one shard.

    Attributes:
        scores: columns by name.
        rows: of the pairs, counted through the files of this shard.
        num_rows: of these files.
    """

    scores: dict[str, Ints]
    num_tokens: Ints
    num_prompt: Ints
    files: list[Path]
    rows: Ints
    num_rows: int

    @classmethod
    def read(cls, run: RunStore, iteration: int, shard: int, scored: Manifest) -> _Shard:
        generations = list(scored_generations(run, scored, shard))
        files = [path for manifest in generations for path in fetch_rows(run, manifest, "the generations")]
        score_files = fetch_rows(run, scored, f"{scored.step} of iteration {iteration}")
        scores = read_numbers(score_files, Score)
        if (rows := _rows_of(scores, read_numbers(files, Pair, ("index", "origin")))) is None:
            sources = [key for manifest in generations for key in manifest.outputs]
            raise IntegrityError(f"the scores {list(scored.outputs)} are of other pairs than {sources}")
        lengths = read_numbers(files, Pair, _LENGTHS)
        num_prompt, num_rows = lengths["prompt_ids"], len(lengths["prompt_ids"])
        num_tokens = 2 * num_prompt + lengths.pop("actual_ids") + lengths.pop("generated_ids")
        return cls(scores, num_tokens[rows], num_prompt[rows], files, rows, num_rows)


def _rows_of(scores: dict[str, Ints], pairs: dict[str, Ints]) -> Ints | None:
    """Row of each score's pair among the pairs, (N,); None if one is missing."""
    keys, scored_keys = _keys(pairs), _keys(scores)
    pairs.clear()  # each column is megabytes
    order = np.argsort(keys, kind="stable").astype(np.int32)
    keys = keys[order]
    found = np.searchsorted(keys, scored_keys, side="right") - 1
    is_there = len(keys) > 0 and bool((keys[found] == scored_keys).all())
    return order[found] if is_there or not len(found) else None


def _keys(columns: dict[str, Ints]) -> Ints:
    """A number for each key of a pair, see `Pair.key`; origins are below 2**16."""
    keys: Ints = (columns["index"] << 16) + columns["origin"]
    return keys


def load_training_pairs(run: RunStore, iteration: int) -> TrainingPairs:
    """Verify and join all shards of an iteration.

    Raises:
        DataError: no pair is left to train on.
        IntegrityError: a shard is missing or altered, or its files do not belong together.
    """
    manifests = [scored for _, scored in shard_manifests(run, iteration)]
    total = add_up(PairCounts.model_validate(scored.facts) for scored in manifests)
    shards = [_Shard.read(run, iteration, number, scored) for number, scored in enumerate(manifests)]
    num_pairs = sum(len(shard.rows) for shard in shards)
    if not num_pairs:
        raise DataError(
            f"all {total.num_dropped} pairs of iteration {iteration} were dropped: {in_words(total.dropped)}. Raise "
            "generation.temperature or generation.max_new_tokens, ease the settings named here, or stop here"
        )
    scores = RowColumns(Score)
    batches = _batches([shard.scores["batch"] for shard in shards])
    for name in list(shards[0].scores):
        scores.set_column(name, np.concatenate([shard.scores.pop(name) for shard in shards]))
    first_rows = np.cumsum([0, *(shard.num_rows for shard in shards)], dtype=np.int32)
    return TrainingPairs(
        scores,
        np.concatenate([shard.num_tokens for shard in shards]),
        np.concatenate([shard.num_prompt for shard in shards]),
        batches,
        total,
        [path for shard in shards for path in shard.files],
        np.concatenate([shard.rows + first for shard, first in zip(shards, first_rows, strict=False)]),
        int(first_rows[-1]),
        run.scratch,
    )


def _batches(numbers: list[Ints]) -> GlobalBatches:
    """The global batches of all shards, given the number of each pair's batch within its shard."""
    order, ends, num_pairs = list[Ints](), list[Ints](), 0
    for batch in numbers:
        members = np.argsort(batch, kind="stable")
        order.append(members.astype(np.int32) + np.int32(num_pairs))
        ends.append(num_pairs + np.flatnonzero(np.diff(batch[members], append=-1)) + 1)
        num_pairs += len(batch)
    return GlobalBatches(np.concatenate(order), np.concatenate(ends))
