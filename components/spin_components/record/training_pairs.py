"""Reads what an epoch trains on: pairs with their scores under the reference, or human answers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin_components.algorithm.batching import GlobalBatches, form_batches
from spin_components.data.pair_counts import PairCounts, add_up, in_words
from spin_components.data.row_columns import RowColumns
from spin_components.data.row_sequence import RowSequence
from spin_components.data.shards import Pair, Prompt, Score
from spin_components.data.stored_rows import PickedRows, StoredRows, read_numbers
from spin_components.data.triplets import Triplets
from spin_components.errors import DataError, IntegrityError
from spin_components.record.pairs import ScoredPairs, fetch_rows, scored_generations, shard_manifests
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import Manifest, read_manifest

Ints = NDArray[np.integer[Any]]
_LENGTHS = ("prompt_ids", "actual_ids", "generated_ids")


@dataclass(frozen=True, slots=True)
class TrainingPairs:
    """The N pairs that an epoch trains on, as numbers; their token ids stay in files until `read`.

    Attributes:
        scores: shard after shard; in each the iteration's own pairs by index, then those of the iterations before it.
            Empty for human answers alone.
        num_tokens: see `Pair.num_tokens`, (N,).
        num_packed: tokens of the prompt, once, and of the answers, (N,).
        num_prompt: tokens of the prompt, (N,).
        num_longest: tokens of the longest answer, (N,).
        batches: indices of pairs, by global batch, as they were scored.
        counts: of the pairs by origin, and of those dropped.
        files: local Parquet files of the generations, or of prompts with human answers.
        rows: each pair's row, counted through the files, (N,).
        num_rows: of the files.
        scratch: folder for local files.
        kind: of the rows in the files.
        proto_rows: row of each pair's proto answer, counted likewise, -1 for none, (N,); None where no pair has any.
    """

    scores: RowColumns[Score]
    num_tokens: Ints
    num_packed: Ints
    num_prompt: Ints
    num_longest: Ints
    batches: GlobalBatches
    counts: PairCounts
    files: list[Path]
    rows: Ints
    num_rows: int
    scratch: Path
    kind: type[Pair] | type[Prompt] = Pair
    proto_rows: Ints | None = None

    @property
    def num_answers(self) -> Ints:
        """Number of answers of each pair that are trained on, (N,)."""
        num = np.full(len(self.rows), 2 if self.scores else 1, dtype=np.int32)
        return num if self.proto_rows is None else num + (self.proto_rows >= 0)

    def read(self, indices: Iterable[int]) -> ScoredPairs:
        """Read the token ids of some pairs into a local file.

        Args:
            indices: of the pairs, among all.

        Returns: the pairs under the same indices; those that were not read cannot be asked for.
        """
        held = np.zeros(self.num_rows, dtype=np.bool_)
        for index in indices:
            held[self.rows[index]] = True
            if self.proto_rows is not None and self.proto_rows[index] >= 0:
                held[self.proto_rows[index]] = True
        places = np.cumsum(held, dtype=np.int32) - 1  # of each row of the files within the local file
        stored: Sequence[Any] = StoredRows(self.files, self.kind, self.scratch, held)
        places[~held] = len(stored)
        if not self.scores:
            stored = _HumanAnswers(stored)
        pairs: Sequence[Pair] = PickedRows([stored], places[self.rows])
        if self.proto_rows is not None:
            pairs = Triplets(pairs, stored, np.where(self.proto_rows < 0, -1, places[self.proto_rows]))
        return ScoredPairs(pairs, self.scores, self.batches, self.counts)


class _HumanAnswers(RowSequence[Pair]):
    """Pairs with empty generated answers, of rows that have others or none."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def _row(self, index: int) -> Pair:
        row = self._rows[index]
        return Pair(row.index, row.prompt_ids, row.actual_ids, [], "")


@dataclass(frozen=True, slots=True)
class _Shard:
    """The same of one shard.

    Attributes:
        scores: columns by name.
        num_prompt: tokens of the prompt.
        num_actual, num_generated: tokens of the answers, the latter of all but the human's.
        num_longest: see `TrainingPairs`.
        rows: of the pairs, counted through the files of this shard.
        num_rows: of these files.
        proto_rows: of the proto answers, -1 for none; None where the pairs were scored without.
    """

    scores: dict[str, Ints]
    num_prompt: Ints
    num_actual: Ints
    num_generated: Ints
    num_longest: Ints
    files: list[Path]
    rows: Ints
    num_rows: int
    proto_rows: Ints | None

    @property
    def num_answers(self) -> Ints:
        """Number of answers of each pair, (N,)."""
        num_protos = 0 if self.proto_rows is None else (self.proto_rows >= 0).astype(np.int32)
        return np.full(len(self.rows), 2, dtype=np.int32) + num_protos

    @classmethod
    def read(cls, run: RunStore, iteration: int, shard: int, scored: Manifest) -> _Shard:
        generations = list(scored_generations(run, scored, shard))
        files = [path for manifest in generations for path in fetch_rows(run, manifest, "the generations")]
        score_files = fetch_rows(run, scored, f"{scored.step} of iteration {iteration}")
        scores = read_numbers(score_files, Score)
        keys = _keys(read_numbers(files, Pair, ("index", "origin")))
        proto_rows = _proto_rows(scores, keys)
        if (rows := _rows_of(_keys(scores), keys)) is None or (proto_rows is None and "ref_proto" in scores):
            sources = [key for manifest in generations for key in manifest.outputs]
            raise IntegrityError(f"the scores {list(scored.outputs)} are of other pairs than {sources}")
        lengths = read_numbers(files, Pair, _LENGTHS)
        num_prompt, num_actual, num_generated = (lengths.pop(name) for name in _LENGTHS)
        num_rows, generated = len(num_prompt), num_generated[rows]
        num_longest = np.maximum(num_actual[rows], generated)
        if proto_rows is not None:
            protos = np.where(proto_rows < 0, 0, num_generated[proto_rows])
            generated, num_longest = generated + protos, np.maximum(num_longest, protos)
        return cls(
            scores, num_prompt[rows], num_actual[rows], generated, num_longest, files, rows, num_rows, proto_rows
        )


def _rows_of(wanted: Ints, keys: Ints) -> Ints | None:
    """Row of each wanted key among the keys of all pairs, (N,); None if one is missing."""
    order = np.argsort(keys, kind="stable").astype(np.int32)
    keys = keys[order]
    found = np.searchsorted(keys, wanted, side="right") - 1
    is_there = len(keys) > 0 and bool((keys[found] == wanted).all())
    return order[found] if is_there or not len(found) else None


def _proto_rows(scores: dict[str, Ints], keys: Ints) -> Ints | None:
    """Row of each score's proto answer, -1 for none, (N,); None if one is missing, or the scores are without."""
    if "ref_proto" not in scores:
        return None
    has_proto = ~np.isnan(scores["ref_proto"])
    rows = np.full(len(has_proto), -1, dtype=np.int32)
    found = _rows_of(scores["index"][has_proto] << 16, keys)  # of origin 0
    if found is None:
        return None
    rows[has_proto] = found
    return rows


def _keys(columns: dict[str, Ints]) -> Ints:
    """A number for each key of a pair, see `Pair.key`; origins are below 2**16."""
    keys: Ints = (columns["index"] << 16) + columns["origin"]
    return keys


def load_human_answers(run: RunStore, global_batch_size: int, seed: int) -> TrainingPairs:
    """Verify all training prompts with their human answers, and form global batches of them.

    Raises:
        IntegrityError: a shard is missing or altered.
    """
    manifest = read_manifest(run, layout.DATA_MANIFEST)
    keys = [layout.train_shard(shard) for shard in range(int(manifest.facts["num_shards"]))]
    outputs = {key: manifest.outputs[key] for key in keys}
    folder = run.fetch(outputs, what="the training data", made_by=layout.DATA_MANIFEST)
    files = [folder / key for key in keys]
    lengths = read_numbers(files, Prompt, ("prompt_ids", "actual_ids"))
    num_prompt, num = lengths["prompt_ids"], len(lengths["prompt_ids"])
    return TrainingPairs(
        RowColumns(Score),
        2 * num_prompt + lengths["actual_ids"],
        num_prompt + lengths["actual_ids"],
        num_prompt,
        lengths["actual_ids"],
        form_batches(num, global_batch_size, seed),
        PairCounts(num_pairs=num),
        files,
        np.arange(num, dtype=np.int32),
        num,
        run.scratch,
        Prompt,
    )


def load_training_pairs(run: RunStore, iteration: int, *, with_generated: bool = True) -> TrainingPairs:
    """Verify and join all shards of an iteration.

    Args:
        run: the run.
        iteration: t.
        with_generated: whether to train on generated answers too; otherwise there are no scores.

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
    for name in list(shards[0].scores) if with_generated else ():
        scores.set_column(name, np.concatenate([shard.scores.pop(name) for shard in shards]))
    first_rows = np.cumsum([0, *(shard.num_rows for shard in shards)], dtype=np.int32)
    num_prompt = np.concatenate([shard.num_prompt for shard in shards])
    num_answers = np.concatenate([shard.num_answers for shard in shards]) if with_generated else 2
    num_packed = num_prompt + np.concatenate([shard.num_actual for shard in shards])
    if with_generated:
        num_packed = num_packed + np.concatenate([shard.num_generated for shard in shards])
    return TrainingPairs(
        scores,
        num_packed + (num_answers - 1) * num_prompt,
        num_packed,
        num_prompt,
        np.concatenate([shard.num_longest if with_generated else shard.num_actual for shard in shards]),
        batches,
        total,
        [path for shard in shards for path in shard.files],
        np.concatenate([shard.rows + first for shard, first in zip(shards, first_rows, strict=False)]),
        int(first_rows[-1]),
        run.scratch,
        proto_rows=_all_proto_rows(shards, first_rows) if with_generated else None,
    )


def _all_proto_rows(shards: Sequence[_Shard], first_rows: Ints) -> Ints | None:
    """Rows of the proto answers, counted through the files of all shards; None where the pairs have none."""
    parts = [
        np.where(shard.proto_rows < 0, -1, shard.proto_rows + first)
        for shard, first in zip(shards, first_rows, strict=False)
        if shard.proto_rows is not None
    ]
    return np.concatenate(parts) if parts else None


def _batches(numbers: list[Ints]) -> GlobalBatches:
    """The global batches of all shards, given the number of each pair's batch within its shard."""
    order, ends, num_pairs = list[Ints](), list[Ints](), 0
    for batch in numbers:
        members = np.argsort(batch, kind="stable")
        order.append(members.astype(np.int32) + np.int32(num_pairs))
        ends.append(num_pairs + np.flatnonzero(np.diff(batch[members], append=-1)) + 1)
        num_pairs += len(batch)
    return GlobalBatches(np.concatenate(order), np.concatenate(ends))
