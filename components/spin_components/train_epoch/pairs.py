"""Reads the pairs that an iteration trains on, with their scores under the reference."""

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
    """Pairs to train on, and the log-probabilities of their answers under the reference.

    Attributes:
        pairs: shard after shard; in each the iteration's own by index, then those of the iterations before it.
        scores: of the same pairs, in the same order.
        batches: indices of pairs, by global batch, as they were scored.
        counts: of the pairs by origin, and of those dropped.
    """

    pairs: list[Pair]
    scores: list[Score]
    batches: list[tuple[int, ...]]
    counts: PairCounts


def shard_manifests(run: RunStore, iteration: int) -> list[tuple[Manifest, Manifest]]:
    """Manifests of generations and of scores, one pair a shard.

    Raises:
        IntegrityError: a shard is missing.
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
    """Read, verify and join all shards of an iteration.

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
        shard_scores = [score for key in scored.outputs for score in read_rows(folder / key, Score)]
        if not {score.key for score in shard_scores} <= by_key.keys():
            sources = [key for manifest in generations for key in manifest.outputs]
            raise IntegrityError(f"the scores {list(scored.outputs)} are of other pairs than {sources}")
        members: dict[int, list[int]] = {}
        for i, score in enumerate(shard_scores, start=len(scores)):
            members.setdefault(score.batch, []).append(i)
        batches += [tuple(members[number]) for number in sorted(members)]
        pairs += [by_key[score.key] for score in shard_scores]
        scores += shard_scores
        counts.append(PairCounts.model_validate(scored.facts))
    total = add_up(counts)
    if not pairs:
        raise DataError(
            f"all {total.num_dropped} pairs of iteration {iteration} were dropped: {in_words(total.dropped)}. Raise "
            "generation.temperature or generation.max_new_tokens, ease the settings named here, or stop here"
        )
    return ScoredPairs(pairs, scores, batches, total)
