"""Reads the generations of an iteration, as recorded by `generate`."""

from __future__ import annotations

from collections.abc import Iterator

from spin_components.data.shards import Pair, read_rows
from spin_components.errors import IntegrityError
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.manifests import Manifest, read_manifest
from spin_components.store.run import RunStore

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
