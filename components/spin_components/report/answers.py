"""The answers of an iteration as columns: lengths, how they ended, what reference and training gave them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from spin_components.report.history import IterationHistory
from spin_components.store import layout
from spin_components.store.manifests import Manifest
from spin_components.store.run import RunStore

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_ORIGIN = "origin"


@dataclass(frozen=True, slots=True)
class Answers:
    """All pairs that an iteration generated, N of them, in the order of their index.

    What training gave pairs of earlier iterations that it took again is not here: a pair is shown with the iteration
    that generated it.

    Attributes:
        files: checked, with the token ids; `ids` reads them again, since all iterations' would fill much memory.
        rows: where each pair is in the files, (N,).
        finish_reason: (N,) text.
        num_actual, num_generated: tokens, (N,).
        ref_actual, ref_generated: log-probabilities under the reference, nats, (N,); NaN where a pair was dropped.
        margin: reward of the human's answer less that of the generated one, in the last epoch, (N,); NaN where unknown.
        trained: index of the pairs that are trained on, by the iteration that generated them.
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
        """Mean log-probability of a token under the reference, of `actual` or `generated` answers; None of none."""
        sums: Floats = getattr(self, f"ref_{kind}")
        known = np.isfinite(sums)
        tokens = getattr(self, f"num_{kind}")[known].sum()
        return float(sums[known].sum() / tokens) if tokens else None

    def ids(self, places: Ints) -> list[dict[str, list[int]]]:
        """Token ids of some pairs: `prompt_ids`, `actual_ids`, `generated_ids`."""
        table = pa.concat_tables(_table(file, ["prompt_ids", "actual_ids", "generated_ids"]) for file in self.files)
        found: list[dict[str, list[int]]] = table.take(self.rows[places]).to_pylist()
        return found


def read_answers(run: RunStore, iteration: IterationHistory) -> Answers:
    """Fetch, check and join what is there of an iteration.

    Raises:
        IntegrityError: a file is missing or altered.
    """
    files = _fetched(run, [generated for generated, _ in iteration.shards], "generations")
    pairs = pa.concat_tables(_table(file) for file in files)
    order = np.argsort(pairs["index"].to_numpy(), kind="stable")
    index = pairs["index"].to_numpy()[order]
    scored = _fetched(run, [scored for _, scored in iteration.shards if scored], "scores")
    scores = pa.concat_tables(_table(file) for file in scored) if scored else None
    trained = _by_origin(scores, iteration.number)
    scores, rewards = (_own(table, iteration.number) for table in (scores, _rewards(run, iteration)))
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


def _fetched(run: RunStore, manifests: Sequence[Manifest], what: str) -> list[Path]:
    files: list[Path] = []
    for manifest in manifests:
        made_by = layout.manifest_of(next(iter(manifest.outputs)))
        folder = run.fetch(manifest.outputs, what=what, made_by=made_by)
        files += [folder / key for key in manifest.outputs]
    return files


def _rewards(run: RunStore, iteration: IterationHistory) -> Any:
    """Of the last epoch that kept them."""
    for epoch in reversed(iteration.epochs):
        key = layout.rewards(iteration.number, epoch.number)
        if key in epoch.trained.outputs:
            made_by = layout.epoch_manifest(iteration.number, epoch.number)
            files = {key: epoch.trained.outputs[key]}
            return _table(run.fetch(files, what="the rewards", made_by=made_by) / key)
    return None


def _table(path: Path, columns: list[str] | None = None) -> Any:
    return parquet.read_table(path, columns=columns, memory_map=True)


def _own(table: Any, iteration: int) -> Any:
    """The rows of pairs that were generated in an iteration; all of a table from before there was history."""
    if table is None or _ORIGIN not in table.column_names:
        return table
    return table.filter(compute.equal(table[_ORIGIN], iteration))


def _by_origin(scores: Any, iteration: int) -> dict[int, Ints]:
    if scores is None:
        return {}
    index = scores["index"].to_numpy()
    if _ORIGIN not in scores.column_names:
        return {iteration: index}
    origin = scores[_ORIGIN].to_numpy()
    return {int(number): index[origin == number] for number in np.unique(origin)}


def _lengths(table: Any, column: str) -> Ints:
    found: Ints = compute.list_value_length(table[column]).to_numpy().astype(np.int64)
    return found


def _aligned(index: Ints, table: Any, column: str) -> Floats:
    """A column in the order of `index`, NaN where it has no row."""
    found = np.full(len(index), np.nan)
    if table is not None and len(index):
        rows = table["index"].to_numpy()
        places = np.clip(np.searchsorted(index, rows), 0, len(index) - 1)
        known = index[places] == rows
        found[places[known]] = table[column].to_numpy()[known]
    return found
