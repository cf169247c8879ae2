"""The pairs that an iteration trains on, its own and those of iterations before it, with their reference scores."""

from __future__ import annotations

from dataclasses import dataclass

from spin_components.data.pair_counts import PairCounts, add_up, in_words
from spin_components.data.shards import Pair, Score, read_rows
from spin_components.errors import DataError, IntegrityError
from spin_components.ref_logprob.played import read_pairs, scored_generations
from spin_components.store import layout
from spin_components.store.manifests import Manifest, read_manifest
from spin_components.store.run import RunStore


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Pairs to train on, and what the reference gives both answers of each.

    Attributes:
        pairs: shard after shard; of each its own in the order of their index, then those of the iteration before.
        scores: of the same pairs, in the same order.
        batches: places of pairs, by global batch, as they were scored.
        counts: where they are from, and what was left out.
    """

    pairs: list[Pair]
    scores: list[Score]
    batches: list[tuple[int, ...]]
    counts: PairCounts


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
        IntegrityError: a shard is missing or altered, or its files do not belong together.
    """
    pairs: list[Pair] = []
    scores: list[Score] = []
    batches: list[tuple[int, ...]] = []
    counts: list[PairCounts] = []
    for shard, (_, scored) in enumerate(shard_manifests(run, iteration)):
        generations = list(scored_generations(run, scored, shard))
        by_key = {pair.key: pair for manifest in generations for pair in read_pairs(run, manifest)}
        made_by = layout.manifest_of(next(iter(scored.outputs)))
        folder = run.fetch(scored.outputs, what=f"{scored.step} of iteration {iteration}", made_by=made_by)
        found = [score for key in scored.outputs for score in read_rows(folder / key, Score)]
        if not {score.key for score in found} <= by_key.keys():
            sources = [key for manifest in generations for key in manifest.outputs]
            raise IntegrityError(f"the scores {list(scored.outputs)} are of other pairs than {sources}")
        members: dict[int, list[int]] = {}
        for place, score in enumerate(found, start=len(scores)):
            members.setdefault(score.batch, []).append(place)
        batches += [tuple(members[number]) for number in sorted(members)]
        pairs += [by_key[score.key] for score in found]
        scores += found
        counts.append(PairCounts.model_validate(scored.facts))
    total = add_up(counts)
    if not pairs:
        raise DataError(
            f"all {total.num_dropped} pairs of iteration {iteration} were dropped: {in_words(total.dropped)}. Raise "
            "generation.temperature or generation.max_new_tokens, ease the settings named here, or stop here"
        )
    return ScoredPairs(pairs, scores, batches, total)
