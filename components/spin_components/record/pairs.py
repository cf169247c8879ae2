"""Reads the pairs that an iteration trains on, with their scores under the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spin_components.data.pair_counts import PairCounts, add_up, in_words
from spin_components.data.shards import Pair, Score, read_rows
from spin_components.errors import DataError, IntegrityError
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import digest_of
from spin_components.store.manifests import Manifest, read_manifest

_INPUT = "generations of iteration "


def generations_input(origin: int) -> str:
    """Name of the input of `ref-logprob` that holds the digest of an iteration's generations."""
    return f"{_INPUT}{origin}"


def read_generations(run: RunStore, origin: int, shard: int) -> Manifest:
    """The manifest of one shard's generations.

    Raises:
        IntegrityError: it is missing or unreadable.
    """
    return read_manifest(run, layout.manifest_of(layout.generations(origin, shard)))


def generation_digests(scored: Manifest) -> dict[int, str]:
    """Digests of the generations that were scored, by the iteration that generated them."""
    return {int(name.removeprefix(_INPUT)): digest for name, digest in scored.inputs.items() if name.startswith(_INPUT)}


def scored_generations(run: RunStore, scored: Manifest, shard: int) -> Iterator[Manifest]:
    """Yield the manifests of the generations that were scored.

    Raises:
        IntegrityError: one is missing, or has changed since.
    """
    for origin, digest in generation_digests(scored).items():
        manifest = read_generations(run, origin, shard)
        if (actual := digest_of(manifest.outputs)) != digest:
            (key,) = scored.outputs
            raise IntegrityError(
                f"{run.uri_of(layout.generations(origin, shard))} is not what {key} was made from: its digest is "
                f"{actual:.12}…, expected {digest:.12}…. Put back what was there, or delete {layout.manifest_of(key)} "
                "to have it scored again"
            )
        yield manifest


def read_pairs(run: RunStore, manifest: Manifest) -> list[Pair]:
    """Fetch and verify the pairs of a shard.

    Raises:
        IntegrityError: it is missing or altered.
    """
    made_by = layout.manifest_of(next(iter(manifest.outputs)))
    folder = run.fetch(manifest.outputs, what="the generations", made_by=made_by)
    return [pair for key in manifest.outputs for pair in read_rows(folder / key, Pair)]


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
