"""Files of generations and scores as steps store them, with their manifests, made without a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Pair, Score, write_rows
from spin_components.record.pairs import generations_input, read_generations
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import digest_of
from spin_components.store.manifests import Manifest


def pair(index: int, origin: int) -> Pair:
    """A pair whose lengths and token ids follow from its key."""
    return Pair(index, [5] * (index + 1), [7, 8, 2], [index + 10, *[origin + 50] * (index % 3), 2], "stop", origin)


def write_data(run: RunStore, *, num_shards: int, outputs: Any = None) -> None:
    """The manifest of prepared data."""
    _write_manifest(run, layout.DATA_MANIFEST, "prepare", {"num_shards": num_shards, "eos_ids": [2]}, outputs)


def write_generations(run: RunStore, origin: int, shard: int, pairs: Sequence[Pair]) -> None:
    """What `generate` stores."""
    key = layout.generations(origin, shard)
    with run.staged(key) as staged:
        write_rows(staged.path, Pair, pairs)
    _write_manifest(run, layout.manifest_of(key), "generate", {"num_pairs": len(pairs)}, staged.outputs)


def write_scores(
    run: RunStore,
    iteration: int,
    shard: int,
    rows: Sequence[tuple[int, int, int]],
    *,
    origins: Sequence[int],
    counts: PairCounts | None = None,
    protos: Collection[int] | None = None,
) -> None:
    """What `ref-logprob` stores.

    Args:
        run: with the generations of all origins.
        iteration: t.
        shard: number of the shard.
        rows: index, origin and batch of each scored pair.
        origins: iterations whose generations were scored.
        counts: of the pairs; None for those of `rows`.
        protos: indices of the pairs with a proto answer; None where they were scored without.
    """
    key = layout.ref_logprobs(iteration, shard)
    scores = [Score(index, -float(index), -2.0 * index, batch, origin) for index, origin, batch in rows]
    if protos is not None:
        scores = [replace(score, ref_proto=-3.0 if score.index in protos else math.nan) for score in scores]
    with run.staged(key) as staged:
        write_rows(staged.path, Score, scores)
    by_origin = {origin: sum(row[1] == origin for row in rows) for origin in origins}
    counts = counts or PairCounts(num_pairs=len(rows), num_by_origin=by_origin)
    inputs = {generations_input(origin): digest_of(read_generations(run, origin, shard).outputs) for origin in origins}
    facts = counts.model_dump(mode="json")
    _write_manifest(run, layout.manifest_of(key), "ref-logprob", facts, staged.outputs, inputs)


def _write_manifest(
    run: RunStore, key: str, step: str, facts: dict[str, Any], outputs: Any = None, inputs: dict[str, Any] | None = None
) -> None:
    manifest = Manifest(step=step, inputs=inputs or {}, outputs=outputs or {}, facts=facts)
    run.write_json(key, manifest.model_dump(mode="json"))
