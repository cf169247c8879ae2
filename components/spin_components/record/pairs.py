"""Finds and reads the pairs that an iteration generated, and those of the iterations before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Pair, Score
from spin_components.data.stored_rows import StoredRows
from spin_components.errors import IntegrityError
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


def fetch_rows(run: RunStore, manifest: Manifest, what: str) -> list[Path]:
    """Fetch and verify the files that a step wrote; returns their paths on this machine.

    Raises:
        IntegrityError: one is missing or altered.
    """
    made_by = layout.manifest_of(next(iter(manifest.outputs)))
    folder = run.fetch(manifest.outputs, what=what, made_by=made_by)
    return [folder / key for key in manifest.outputs]


def read_pairs(run: RunStore, manifests: Iterable[Manifest]) -> StoredRows[Pair]:
    """Fetch and verify the pairs of a shard, and hold them in a local file.

    Raises:
        IntegrityError: a file is missing or altered.
    """
    paths = [path for manifest in manifests for path in fetch_rows(run, manifest, "the generations")]
    return StoredRows(paths, Pair, run.scratch)


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Pairs to train on, and the log-probabilities of their answers under the reference.

    Attributes:
        pairs: shard after shard; in each the iteration's own by index, then those of the iterations before it.
        scores: of the same pairs, in the same order.
        batches: indices of pairs, by global batch, as they were scored.
        counts: of the pairs by origin, and of those dropped.
    """

    pairs: Sequence[Pair]
    scores: Sequence[Score]
    batches: Sequence[Iterable[int]]
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
