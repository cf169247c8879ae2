"""The pairs of an iteration with their reference scores, those without signal left out."""

from __future__ import annotations

from dataclasses import dataclass

from spin_components.data.shards import Pair, Score, read_rows
from spin_components.errors import DataError, IntegrityError
from spin_components.store import layout
from spin_components.store.manifests import Manifest, read_manifest
from spin_components.store.run import RunStore


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Pairs to train on, and what the reference gives both answers of each.

    Attributes:
        pairs: shard after shard, each in the order of its index.
        scores: of the same pairs, in the same order.
        batches: places of pairs, by global batch, as they were scored.
        num_dropped: pairs without signal: an empty answer, or the human's own.
    """

    pairs: list[Pair]
    scores: list[Score]
    batches: list[tuple[int, ...]]
    num_dropped: int


def shard_manifests(run: RunStore, iteration: int) -> list[tuple[Manifest, Manifest]]:
    """Manifests of generations and scores, one pair a shard.

    Raises:
        IntegrityError: a shard is not there.
    """
    num_shards = read_manifest(run, layout.DATA_MANIFEST).facts["num_shards"]
    return [
        (
            read_manifest(run, layout.manifest_of(layout.generations(iteration, shard))),
            read_manifest(run, layout.manifest_of(layout.ref_logprobs(iteration, shard))),
        )
        for shard in range(num_shards)
    ]


def load_scored_pairs(run: RunStore, iteration: int) -> ScoredPairs:
    """Read, check and join all shards of an iteration.

    Raises:
        DataError: no pair is left to train on.
        IntegrityError: a shard is missing or altered, or the two files of a shard do not belong together.
    """
    pairs: list[Pair] = []
    scores: list[Score] = []
    batches: list[tuple[int, ...]] = []
    num_dropped = 0
    for generated, scored in shard_manifests(run, iteration):
        for manifest in (generated, scored):
            made_by = layout.manifest_of(next(iter(manifest.outputs)))
            what = f"{manifest.step} of iteration {iteration}"
            folder = run.fetch(manifest.outputs, what=what, made_by=made_by)
        by_index = {pair.index: pair for key in generated.outputs for pair in read_rows(folder / key, Pair)}
        found = [score for key in scored.outputs for score in read_rows(folder / key, Score)]
        if not {score.index for score in found} <= by_index.keys():
            raise IntegrityError(f"the scores {list(scored.outputs)} are of other pairs than {list(generated.outputs)}")
        members: dict[int, list[int]] = {}
        for place, score in enumerate(found, start=len(scores)):
            members.setdefault(score.batch, []).append(place)
        batches += [tuple(members[number]) for number in sorted(members)]
        pairs += [by_index[score.index] for score in found]
        scores += found
        num_dropped += scored.facts["num_dropped"]
    if not pairs:
        raise DataError(
            f"all {num_dropped} pairs of iteration {iteration} are without signal: the reference answered nothing, or "
            "as the human did. Raise generation.temperature or generation.max_new_tokens, or stop here"
        )
    return ScoredPairs(pairs, scores, batches, num_dropped)
