"""What the report shows of an iteration's generated answers: counts and sums of all, and a sample of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from spin_components.data.stored_rows import read_numbers, stream_batches
from spin_components.record.history import IterationHistory
from spin_components.report.series import evenly
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import Manifest

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]

MOST_ROWS = 500
"""Maximum number of evenly spaced pairs in the sample."""
EXTREMES = 20
"""Number of pairs with the smallest and with the largest margin of each iteration that are in the sample too."""


@dataclass(frozen=True, slots=True)
class Answers:
    """A summary of the N pairs that an iteration generated.

    Attributes:
        iteration: number of the iteration.
        num_pairs: N.
        num_actual, num_generated: number of answers by their number of tokens, of humans and of the reference.
        mean_logprobs: under the reference, nats a token, of `actual` and `generated` answers; None if unknown.
        num_trained_tokens: of both answers of these pairs, once for each epoch, of any iteration, that trained on them.
        spread: indices of evenly spaced pairs.
        extremes: indices of the pairs with extreme margins.
        files: local Parquet files of the pairs, verified.
        rewards: that of the rewards in the last epoch; none if there are none.
    """

    iteration: int
    num_pairs: int
    num_actual: Ints
    num_generated: Ints
    mean_logprobs: dict[str, float | None]
    num_trained_tokens: int
    spread: list[int]
    extremes: list[int]
    files: list[Path]
    rewards: list[Path]

    def sampled(self, selected: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield the pairs of some indices: token ids, `finish_reason`, and `margin`, NaN if unknown."""
        columns = ["index", "reward_actual", "reward_generated", "origin"]
        margins = {
            row["index"]: row["reward_actual"] - row["reward_generated"]
            for row in _rows(self.rewards, selected, columns)
            if row.get("origin", self.iteration) == self.iteration
        }
        columns = ["index", "prompt_ids", "actual_ids", "generated_ids", "finish_reason"]
        for row in _rows(self.files, selected, columns):
            yield {**row, "margin": margins.get(row["index"], np.nan)}


def _rows(files: Sequence[Path], selected: Sequence[int], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    wanted = pa.array(selected, pa.int64())
    for batch in stream_batches(files, None, columns):
        yield from batch.filter(compute.is_in(batch.column("index"), value_set=wanted)).to_pylist()


def read_answers(run: RunStore, iteration: IterationHistory, trained: Sequence[IterationHistory]) -> Answers:
    """Summarise the generations, scores and rewards of an iteration as far as they exist.

    Args:
        run: the run.
        iteration: that generated the pairs.
        trained: the iterations that may have trained on them.

    Raises:
        IntegrityError: a file is missing or altered.
    """
    files = _fetch(run, [generated for generated, _ in iteration.shards], "generations")
    pairs = read_numbers(files, None, ["index", "actual_ids", "generated_ids"])
    order = np.argsort(pairs["index"], kind="stable")
    index, num_actual, num_generated = (pairs.pop(name)[order] for name in ("index", "actual_ids", "generated_ids"))
    del order
    scores = _of_iteration(_scores(run, iteration, ["index", "ref_actual", "ref_generated", "origin"]), iteration)
    mean_logprobs = {
        kind: _mean_logprob(_aligned(index, scores, f"ref_{kind}"), lengths)
        for kind, lengths in (("actual", num_actual), ("generated", num_generated))
    }
    scores.clear()
    paths = _rewards(run, iteration)
    return Answers(
        iteration=iteration.number,
        num_pairs=len(index),
        num_actual=np.bincount(num_actual),
        num_generated=np.bincount(num_generated),
        mean_logprobs=mean_logprobs,
        num_trained_tokens=_num_trained(run, iteration, trained, index, num_actual + num_generated),
        spread=index[evenly(len(index), MOST_ROWS)].tolist(),
        extremes=_extremes(index, _of_iteration(read_numbers(paths, None, _REWARDS), iteration)),
        files=files,
        rewards=paths,
    )


_REWARDS = ("index", "reward_actual", "reward_generated", "origin")


def _fetch(run: RunStore, manifests: Sequence[Manifest], what: str) -> list[Path]:
    files: list[Path] = []
    for manifest in manifests:
        made_by = layout.manifest_of(next(iter(manifest.outputs)))
        folder = run.fetch(manifest.outputs, what=what, made_by=made_by)
        files += [folder / key for key in manifest.outputs]
    return files


def _scores(run: RunStore, iteration: IterationHistory, columns: Sequence[str]) -> dict[str, Ints]:
    return read_numbers(_fetch(run, [scored for _, scored in iteration.shards if scored], "scores"), None, columns)


def _rewards(run: RunStore, iteration: IterationHistory) -> list[Path]:
    """The file of rewards of the last epoch that stored them; none if no epoch did."""
    for epoch in reversed(iteration.epochs):
        key = layout.rewards(iteration.number, epoch.number)
        if key in epoch.trained.outputs:
            made_by = layout.epoch_manifest(iteration.number, epoch.number)
            files = {key: epoch.trained.outputs[key]}
            return [run.fetch(files, what="the rewards", made_by=made_by) / key]
    return []


def _of_iteration(columns: dict[str, Ints], iteration: IterationHistory) -> dict[str, Ints]:
    """Rows of the pairs that an iteration generated; all rows where there is no column `origin`."""
    if "origin" not in columns:
        return columns
    is_own = columns.pop("origin") == iteration.number
    return {name: columns.pop(name)[is_own] for name in list(columns)}


def _aligned(index: Ints, columns: dict[str, Ints], name: str) -> Floats:
    """A column in the order of `index`, with NaN for missing rows."""
    values = np.full(len(index), np.nan)
    if columns and len(index):
        rows = columns["index"]
        positions = np.clip(np.searchsorted(index, rows), 0, len(index) - 1)
        is_known = index[positions] == rows
        values[positions[is_known]] = columns[name][is_known]
    return values


def _mean_logprob(sums: Floats, lengths: Ints) -> float | None:
    is_known = np.isfinite(sums)
    tokens = lengths[is_known].sum()
    return float(sums[is_known].sum() / tokens) if tokens else None


def _extremes(index: Ints, rewards: dict[str, Ints]) -> list[int]:
    margin = _aligned(index, rewards, "reward_actual") - _aligned(index, rewards, "reward_generated")
    known = np.flatnonzero(np.isfinite(margin))
    ranked = known[np.argsort(margin[known], kind="stable")]
    return [*index[ranked[:EXTREMES]].tolist(), *index[ranked[-EXTREMES:]].tolist()]


def _num_trained(
    run: RunStore, iteration: IterationHistory, trained: Sequence[IterationHistory], index: Ints, num_tokens: Ints
) -> int:
    """See `Answers.num_trained_tokens`."""
    total = 0
    for later in trained:
        origins = later.pair_counts.num_by_origin
        if later.number >= iteration.number and later.epochs and (not origins or iteration.number in origins):
            scores = _scores(run, later, ["index", "origin"])
            if "origin" in scores or later.number == iteration.number:
                positions = np.searchsorted(index, _of_iteration(scores, iteration).get("index", index[:0]))
                total += int(num_tokens[positions].sum()) * len(later.epochs)
    return total


_BINS = 24


def lengths(answers: list[Answers]) -> dict[str, Any]:
    """Return histograms of the number of tokens of human answers and of each iteration's generated answers."""
    if not answers:
        return {}
    most = max(len(counts) for each in answers for counts in (each.num_actual, each.num_generated)) - 1
    width = max(1, -(-(most + 1) // _BINS))
    edges = np.arange(0, most + width + 1, width)

    def shares(counts: Ints) -> list[float]:
        histogram, _ = np.histogram(np.arange(len(counts)), edges, weights=counts)
        return [round(float(count) / int(counts.sum()), 5) for count in histogram]

    def mean(counts: Ints) -> float:
        return float((counts * np.arange(len(counts))).sum() / counts.sum())

    return {
        "edges": edges.tolist(),
        "human": shares(answers[-1].num_actual),
        "human_mean": mean(answers[-1].num_actual),
        "generated": [
            {"iteration": each.iteration, "shares": shares(each.num_generated), "mean": mean(each.num_generated)}
            for each in answers
        ],
    }


def drift(answers: list[Answers]) -> list[dict[str, Any]]:
    """Return the mean log-probability per answer token under each iteration's reference, nats."""
    return [{"iteration": each.iteration, **each.mean_logprobs} for each in answers]
