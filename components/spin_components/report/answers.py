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


@dataclass(frozen=True, slots=True)
class Answers:
    """All pairs of an iteration, N of them, in the order of their index.

    Attributes:
        table: token ids.
        finish_reason: (N,) text.
        num_prompt, num_actual, num_generated: tokens, (N,).
        ref_actual, ref_generated: log-probabilities under the reference, nats, (N,); NaN where a pair was dropped.
        margin: reward of the human's answer less that of the generated one, in the last epoch, (N,); NaN where unknown.
    """

    iteration: int
    table: Any
    index: Ints
    finish_reason: NDArray[np.str_]
    num_prompt: Ints
    num_actual: Ints
    num_generated: Ints
    ref_actual: Floats
    ref_generated: Floats
    margin: Floats

    def mean_logprob(self, kind: str) -> float | None:
        """Mean log-probability of a token under the reference, of `actual` or `generated` answers; None of none."""
        sums: Floats = getattr(self, f"ref_{kind}")
        known = np.isfinite(sums)
        tokens = getattr(self, f"num_{kind}")[known].sum()
        return float(sums[known].sum() / tokens) if tokens else None


def read_answers(run: RunStore, iteration: IterationHistory) -> Answers:
    """Fetch, check and join what is there of an iteration.

    Raises:
        IntegrityError: a file is missing or altered.
    """
    pairs = _read(run, [generated for generated, _ in iteration.shards], "generations")
    pairs = pairs.sort_by("index")
    index = pairs["index"].to_numpy()
    scores = _read(run, [scored for _, scored in iteration.shards if scored], "scores")
    rewards = _rewards(run, iteration)
    return Answers(
        iteration=iteration.number,
        table=pairs,
        index=index,
        finish_reason=np.array(pairs["finish_reason"].to_pylist(), dtype=np.str_),
        num_prompt=_lengths(pairs, "prompt_ids"),
        num_actual=_lengths(pairs, "actual_ids"),
        num_generated=_lengths(pairs, "generated_ids"),
        ref_actual=_aligned(index, scores, "ref_actual"),
        ref_generated=_aligned(index, scores, "ref_generated"),
        margin=_aligned(index, rewards, "reward_actual") - _aligned(index, rewards, "reward_generated"),
    )


def _read(run: RunStore, manifests: Sequence[Manifest], what: str) -> Any:
    tables = []
    for manifest in manifests:
        made_by = layout.manifest_of(next(iter(manifest.outputs)))
        folder = run.fetch(manifest.outputs, what=what, made_by=made_by)
        tables += [_table(folder / key) for key in manifest.outputs]
    return pa.concat_tables(tables) if tables else None


def _rewards(run: RunStore, iteration: IterationHistory) -> Any:
    """Of the last epoch that kept them."""
    for epoch in reversed(iteration.epochs):
        key = layout.rewards(iteration.number, epoch.number)
        if key in epoch.trained.outputs:
            made_by = layout.epoch_manifest(iteration.number, epoch.number)
            files = {key: epoch.trained.outputs[key]}
            return _table(run.fetch(files, what="the rewards", made_by=made_by) / key)
    return None


def _table(path: Path) -> Any:
    return parquet.read_table(path, memory_map=True)


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
