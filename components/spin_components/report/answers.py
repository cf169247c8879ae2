"""Generated answers of an iteration as columns: lengths, finish reasons, log-probabilities and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from spin_components.record.history import IterationHistory
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import Manifest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_ORIGIN = "origin"


@dataclass(frozen=True, slots=True)
class Answers:
    """Columns of the N pairs that an iteration generated, ordered by index.

    Rewards of pairs from earlier iterations are not included, since a pair belongs to the iteration that generated it.

    Attributes:
        iteration: number of the iteration.
        files: local Parquet files with token ids, verified; `token_ids` reads them on demand to save memory.
        rows: row of each pair in the concatenated files, (N,).
        index: index of each pair's prompt, (N,), ascending.
        finish_reason: why generation ended, (N,) text.
        num_actual, num_generated: number of tokens of the human and of the generated answer, (N,).
        ref_actual, ref_generated: log-probabilities under the reference, nats, (N,); NaN if the pair was dropped.
        margin: reward of the human answer minus reward of the generated one in the last epoch, (N,); NaN if unknown.
        trained: indices of the pairs that are trained on, by the iteration that generated them.
    """

    iteration: int
    files: list[Path]
    rows: Ints
    index: Ints
    finish_reason: NDArray[np.str_]
    num_actual: Ints
    num_generated: Ints
    ref_actual: Floats
    ref_generated: Floats
    margin: Floats
    trained: dict[int, Ints]

    def mean_logprob(self, kind: str) -> float | None:
        """Mean log-probability per token under the reference, nats, of `actual` or `generated` answers."""
        sums: Floats = getattr(self, f"ref_{kind}")
        is_known = np.isfinite(sums)
        tokens = getattr(self, f"num_{kind}")[is_known].sum()
        return float(sums[is_known].sum() / tokens) if tokens else None

    def token_ids(self, positions: Ints) -> list[dict[str, list[int]]]:
        """Read `prompt_ids`, `actual_ids` and `generated_ids` of the pairs at some positions in the columns."""
        table = pa.concat_tables(_table(file, ["prompt_ids", "actual_ids", "generated_ids"]) for file in self.files)
        ids: list[dict[str, list[int]]] = table.take(self.rows[positions]).to_pylist()
        return ids


def read_answers(run: RunStore, iteration: IterationHistory) -> Answers:
    """Read the generations, scores and rewards of an iteration as far as they exist.

    Raises:
        IntegrityError: a file is missing or altered.
    """
    files = _fetch(run, [generated for generated, _ in iteration.shards], "generations")
    pairs = pa.concat_tables(_table(file) for file in files)
    order = np.argsort(pairs["index"].to_numpy(), kind="stable")
    index = pairs["index"].to_numpy()[order]
    scored = _fetch(run, [scored for _, scored in iteration.shards if scored], "scores")
    scores = pa.concat_tables(_table(file) for file in scored) if scored else None
    trained = _by_origin(scores, iteration.number)
    scores, rewards = (_of_iteration(table, iteration.number) for table in (scores, _rewards(run, iteration)))
    return Answers(
        iteration=iteration.number,
        files=files,
        rows=order,
        index=index,
        finish_reason=np.array(pairs["finish_reason"].to_pylist(), dtype=np.str_)[order],
        num_actual=_lengths(pairs, "actual_ids")[order],
        num_generated=_lengths(pairs, "generated_ids")[order],
        ref_actual=_aligned(index, scores, "ref_actual"),
        ref_generated=_aligned(index, scores, "ref_generated"),
        margin=_aligned(index, rewards, "reward_actual") - _aligned(index, rewards, "reward_generated"),
        trained=trained,
    )


def _fetch(run: RunStore, manifests: Sequence[Manifest], what: str) -> list[Path]:
    files: list[Path] = []
    for manifest in manifests:
        made_by = layout.manifest_of(next(iter(manifest.outputs)))
        folder = run.fetch(manifest.outputs, what=what, made_by=made_by)
        files += [folder / key for key in manifest.outputs]
    return files


def _rewards(run: RunStore, iteration: IterationHistory) -> Any:
    """The table of rewards of the last epoch that stored them; None if there is none."""
    for epoch in reversed(iteration.epochs):
        key = layout.rewards(iteration.number, epoch.number)
        if key in epoch.trained.outputs:
            made_by = layout.epoch_manifest(iteration.number, epoch.number)
            files = {key: epoch.trained.outputs[key]}
            return _table(run.fetch(files, what="the rewards", made_by=made_by) / key)
    return None


def _table(path: Path, columns: list[str] | None = None) -> Any:
    return parquet.read_table(path, columns=columns, memory_map=True)


def _of_iteration(table: Any, iteration: int) -> Any:
    """Rows of the pairs that an iteration generated; all rows of tables without the column `origin`."""
    if table is None or _ORIGIN not in table.column_names:
        return table
    return table.filter(compute.equal(table[_ORIGIN], iteration))


def _by_origin(scores: Any, iteration: int) -> dict[int, Ints]:
    """Indices of the scored pairs, by the iteration that generated them."""
    if scores is None:
        return {}
    index = scores["index"].to_numpy()
    if _ORIGIN not in scores.column_names:
        return {iteration: index}
    origin = scores[_ORIGIN].to_numpy()
    return {int(number): index[origin == number] for number in np.unique(origin)}


def _lengths(table: Any, column: str) -> Ints:
    lengths: Ints = compute.list_value_length(table[column]).to_numpy().astype(np.int64)
    return lengths


def _aligned(index: Ints, table: Any, column: str) -> Floats:
    """A column in the order of `index`, with NaN for missing rows."""
    values = np.full(len(index), np.nan)
    if table is not None and len(index):
        rows = table["index"].to_numpy()
        positions = np.clip(np.searchsorted(index, rows), 0, len(index) - 1)
        is_known = index[positions] == rows
        values[positions[is_known]] = table[column].to_numpy()[is_known]
    return values
