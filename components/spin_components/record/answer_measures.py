"""Measures of a model's answers to held-out prompts, as `validate` stored them."""

from __future__ import annotations

from collections.abc import Sequence

from spin_components.data.shards import GREEDY, SAMPLED, AnswerMeasures, read_rows
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest

COLUMNS = {
    "chrf": (GREEDY, "chrf"),
    "match": (GREEDY, "match"),
    "ended": (SAMPLED, "ended"),
    "repetition": (SAMPLED, "repetition"),
}
"""Decoding and column of each measure."""


def read_measures(run: RunStore, iteration: int, epoch: int) -> list[AnswerMeasures]:
    """Fetch and verify the measures of a validation; empty where an earlier release validated, or nothing was sampled.

    Args:
        run: the run.
        iteration: t, or `layout.BASE`.
        epoch: within the iteration.
    """
    made_by = layout.validation(iteration, epoch)
    key, outputs = layout.measures_of(made_by), read_manifest(run, made_by).outputs
    if key not in outputs:
        return []
    return read_rows(run.fetch({key: outputs[key]}, what="the answers", made_by=made_by) / key, AnswerMeasures)


def values_of(rows: Sequence[AnswerMeasures], measure: str) -> dict[int, float]:
    """The values of a measure, one of `COLUMNS`, by the prompt's index."""
    decoding, column = COLUMNS[measure]
    return {row.index: float(getattr(row, column)) for row in rows if row.decoding == decoding}
