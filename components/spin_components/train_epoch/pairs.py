"""The pairs of an iteration with their reference scores, those without signal left out."""

from __future__ import annotations

from dataclasses import dataclass

from spin_components.data.shards import Pair, Score, read_rows
from spin_components.errors import DataError, IntegrityError
from spin_components.store import layout
from spin_components.store.digests import verify_file
from spin_components.store.manifests import Manifest, read_manifest
from spin_components.store.run import RunStore


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Pairs to train on, and what the reference gives both answers of each.

    Attributes:
        pairs: in the order of their index.
        scores: of the same pairs, in the same order.
        num_dropped: pairs without signal: an empty answer, or the human's own.
        precision: the compute precision the scores were made with.
    """

    pairs: list[Pair]
    scores: list[Score]
    num_dropped: int
    precision: str


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
    joined: list[tuple[Pair, Score]] = []
    num_dropped, precisions = 0, set()
    for generated, scored in shard_manifests(run, iteration):
        for manifest in (generated, scored):
            for key, digest in manifest.outputs.items():
                verify_file(run.path(key), digest, what=f"{manifest.step} of iteration {iteration}")
        pairs = {pair.index: pair for key in generated.outputs for pair in read_rows(run.path(key), Pair)}
        scores = [score for key in scored.outputs for score in read_rows(run.path(key), Score)]
        if not {score.index for score in scores} <= pairs.keys():
            raise IntegrityError(f"the scores {list(scored.outputs)} are of other pairs than {list(generated.outputs)}")
        joined += [(pairs[score.index], score) for score in scores]
        num_dropped += scored.facts["num_dropped"]
        precisions.add(str(scored.inputs["precision"]))
    if not joined:
        raise DataError(
            f"all {num_dropped} pairs of iteration {iteration} are without signal: the reference answered nothing, or "
            "as the human did. Raise generation.temperature or generation.max_new_tokens, or stop here"
        )
    if len(precisions) > 1:
        raise IntegrityError(
            f"shards of iteration {iteration} were scored in {sorted(precisions)}; set training.precision"
        )
    joined.sort(key=lambda row: row[0].index)
    return ScoredPairs([pair for pair, _ in joined], [score for _, score in joined], num_dropped, precisions.pop())
