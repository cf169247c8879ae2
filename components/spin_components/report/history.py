"""What the manifests of a run tell, in the order it happened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spin_components.checkpoint.decisions import lowest
from spin_components.data.pair_counts import PairCounts, add_up
from spin_components.errors import ConfigError
from spin_components.store import layout
from spin_components.store.manifests import Manifest, read_manifest
from spin_components.store.run import RunStore


@dataclass(frozen=True, slots=True)
class EpochHistory:
    """A finished epoch, and its validation once that is finished too."""

    number: int
    trained: Manifest
    check: Manifest | None


@dataclass(frozen=True, slots=True)
class IterationHistory:
    """What is finished of an iteration.

    Attributes:
        shards: manifests of generations, each with that of its scores once there is one.
        published: the checkpoint's manifest, when the iteration is over.
        evaluated: the evaluation's, where there is one.
    """

    number: int
    shards: list[tuple[Manifest, Manifest | None]]
    epochs: list[EpochHistory]
    published: Manifest | None
    evaluated: Manifest | None = None

    @property
    def num_pairs(self) -> int:
        """Pairs generated so far."""
        return sum(int(generated.facts["num_pairs"]) for generated, _ in self.shards)

    def count(self, name: str) -> int:
        """A fact of the generations, summed over shards."""
        return sum(int(generated.facts[name]) for generated, _ in self.shards)

    @property
    def pair_counts(self) -> PairCounts:
        """Pairs to train on, and those left out, of the shards that are scored."""
        return add_up(PairCounts.model_validate(scored.facts) for _, scored in self.shards if scored)

    @property
    def sampler_difference(self) -> tuple[float, float] | None:
        """How far sampler and reference were apart in the shard where it was most, and what was allowed there."""
        names = ("sampler_difference", "sampler_tolerance")
        found = [scored.facts for _, scored in self.shards if scored and names[0] in scored.facts]
        return max(((float(facts[names[0]]), float(facts[names[1]])) for facts in found), default=None)

    @property
    def finish_reasons(self) -> dict[str, int]:
        """Answers by how they ended."""
        found: dict[str, int] = {}
        for generated, _ in self.shards:
            for reason, number in generated.facts["finish_reasons"].items():
                found[reason] = found.get(reason, 0) + int(number)
        return found


@dataclass(frozen=True, slots=True)
class History:
    """A run so far.

    Attributes:
        record: `run.json`.
        data: manifest of the rendered data.
        base: validation of the base model, once finished; base_evaluated, its evaluation, where there is one.
    """

    uri: str
    record: dict[str, Any]
    data: Manifest
    base: Manifest | None
    iterations: list[IterationHistory]
    base_evaluated: Manifest | None = None

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Section tables, as `prepare` recorded them."""
        return dict(self.record["settings"])

    @property
    def published(self) -> list[IterationHistory]:
        """Iterations that are over."""
        return [iteration for iteration in self.iterations if iteration.published]

    @property
    def best(self) -> int | None:
        """Iteration of the best model, `layout.BASE` for the base model; None before an iteration is published."""
        found = {it.number: it.published.facts for it in self.iterations if it.published}
        if not found or not self.base:
            return None
        losses = {layout.BASE: self.base.facts["val_loss"], **{t: facts["val_loss"] for t, facts in found.items()}}
        return lowest(losses, [t for t, facts in found.items() if facts.get("outcome") == "regressed"])

    def manifests(self) -> Iterator[Manifest]:
        """Every manifest there is."""
        yield self.data
        yield from (manifest for manifest in (self.base, self.base_evaluated) if manifest)
        for iteration in self.iterations:
            for generated, scored in iteration.shards:
                yield from (generated, *([scored] if scored else []))
            for epoch in iteration.epochs:
                yield from (epoch.trained, *([epoch.check] if epoch.check else []))
            yield from (manifest for manifest in (iteration.published, iteration.evaluated) if manifest)

    @property
    def as_of(self) -> str:
        """When the newest step finished, ISO 8601."""
        return max(manifest.finished_at for manifest in self.manifests())


def read_history(run: RunStore) -> History:
    """Read every manifest of a run.

    Raises:
        ConfigError: there is none yet.
        IntegrityError: one is damaged.
    """
    if not (run.exists(layout.RUN) and run.exists(layout.DATA_MANIFEST)):
        raise ConfigError(
            f"{run.uri} has nothing to report yet: no {layout.DATA_MANIFEST}, which the first step writes; "
            "check the address, or start the run with `spin-pipeline run`"
        )
    data, keys = read_manifest(run, layout.DATA_MANIFEST), run.sizes("iterations").keys()
    base, judged = layout.BASE_VALIDATION, layout.BASE_EVALUATION
    numbers = [int(name) for name in {key.split("/")[1] for key in keys} if name.isdigit()]
    num_iterations, num_shards = max(numbers, default=-1) + 1, int(data.facts["num_shards"])
    return History(
        uri=run.uri,
        record=run.read_json(layout.RUN),
        data=data,
        base=read_manifest(run, base) if run.exists(base) else None,
        iterations=[_iteration(run, keys, t, num_shards) for t in range(num_iterations)],
        base_evaluated=read_manifest(run, judged) if run.exists(judged) else None,
    )


def _iteration(run: RunStore, keys: Any, t: int, num_shards: int) -> IterationHistory:
    def found(key: str) -> Manifest | None:
        return read_manifest(run, key) if key in keys else None

    shards = [
        (generated, found(layout.manifest_of(layout.ref_logprobs(t, shard))))
        for shard in range(num_shards)
        if (generated := found(layout.manifest_of(layout.generations(t, shard))))
    ]
    epochs: list[EpochHistory] = []
    while trained := found(layout.epoch_manifest(t, len(epochs))):
        epochs.append(EpochHistory(len(epochs), trained, found(layout.validation(t, len(epochs)))))
    return IterationHistory(t, shards, epochs, found(layout.checkpoint(t)), found(layout.evaluation(t)))
