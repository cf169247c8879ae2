"""All manifests of a run, by iteration and epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spin_components.data.pair_counts import PairCounts, add_up
from spin_components.errors import ConfigError
from spin_components.record.decisions import REJECTED, lowest
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import Manifest, read_manifest


@dataclass(frozen=True, slots=True)
class EpochHistory:
    """Manifests of a finished epoch.

    Attributes:
        number: number of the epoch within its iteration.
        trained: manifest of the training step.
        check: manifest of the validation; None if it is not finished.
    """

    number: int
    trained: Manifest
    check: Manifest | None


@dataclass(frozen=True, slots=True)
class IterationHistory:
    """Manifests of an iteration's finished steps.

    Attributes:
        number: number of the iteration.
        shards: for each shard the manifests of its generations and of its scores, None if not scored.
        epochs: finished epochs.
        published: manifest of the checkpoint step; None if the iteration is not finished.
        evaluated: manifest of the evaluation, if any.
    """

    number: int
    shards: list[tuple[Manifest, Manifest | None]]
    epochs: list[EpochHistory]
    published: Manifest | None
    evaluated: Manifest | None = None

    @property
    def num_pairs(self) -> int:
        """Number of pairs generated so far."""
        return sum(int(generated.facts["num_pairs"]) for generated, _ in self.shards)

    def count(self, name: str) -> int:
        """Sum a count of the generations' manifests over shards."""
        return sum(int(generated.facts[name]) for generated, _ in self.shards)

    @property
    def pair_counts(self) -> PairCounts:
        """Counts of pairs to train on and of dropped pairs, over the scored shards."""
        return add_up(PairCounts.model_validate(scored.facts) for _, scored in self.shards if scored)

    @property
    def sampler_difference(self) -> tuple[float, float] | None:
        """Largest difference between sampler and reference over shards, and its tolerance, nats per token."""
        names = ("sampler_difference", "sampler_tolerance")
        shards = [scored.facts for _, scored in self.shards if scored and names[0] in scored.facts]
        return max(((float(facts[names[0]]), float(facts[names[1]])) for facts in shards), default=None)

    @property
    def finish_reasons(self) -> dict[str, int]:
        """Number of answers by finish reason."""
        counts: dict[str, int] = {}
        for generated, _ in self.shards:
            for reason, number in generated.facts["finish_reasons"].items():
                counts[reason] = counts.get(reason, 0) + int(number)
        return counts


@dataclass(frozen=True, slots=True)
class History:
    """Manifests of a run's finished steps.

    Attributes:
        uri: address of the run.
        record: content of `run.json`.
        data: manifest of the prepared data.
        base: manifest of the base model's validation; None if not finished.
        iterations: iterations that have started.
        base_evaluated: manifest of the base model's evaluation, if any.
    """

    uri: str
    record: dict[str, Any]
    data: Manifest
    base: Manifest | None
    iterations: list[IterationHistory]
    base_evaluated: Manifest | None = None

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Settings by section, as recorded in `run.json`."""
        return dict(self.record["settings"])

    @property
    def published(self) -> list[IterationHistory]:
        """Finished iterations."""
        return [iteration for iteration in self.iterations if iteration.published]

    @property
    def best(self) -> int | None:
        """Iteration of the best model, `layout.BASE` for the base model; None if no iteration is finished."""
        published = {it.number: it.published.facts for it in self.iterations if it.published}
        if not published or not self.base:
            return None
        losses = {layout.BASE: self.base.facts["val_loss"], **{t: facts["val_loss"] for t, facts in published.items()}}
        judged = published[max(published)].get("best")  # with the rules of the newest attempt
        rejected = [t for t, facts in published.items() if facts.get("outcome") in REJECTED]
        return lowest(losses, rejected) if judged is None else int(judged)

    def manifests(self) -> Iterator[Manifest]:
        """Iterate over all manifests."""
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
        """Time at which the newest step finished, ISO 8601."""
        return max(manifest.finished_at for manifest in self.manifests())


def read_history(run: RunStore) -> History:
    """Read all manifests of a run.

    Raises:
        ConfigError: the run has no data manifest yet.
        IntegrityError: a manifest is damaged.
    """
    if not (run.exists(layout.RUN) and run.exists(layout.DATA_MANIFEST)):
        raise ConfigError(
            f"{run.uri} has nothing to report yet: there is no {layout.DATA_MANIFEST}, which the first step writes; "
            "check the address, or start the run with `spin-pipeline run`"
        )
    data, keys = read_manifest(run, layout.DATA_MANIFEST), run.sizes("iterations").keys()
    base, evaluated = layout.BASE_VALIDATION, layout.BASE_EVALUATION
    numbers = [int(name) for name in {key.split("/")[1] for key in keys} if name.isdigit()]
    num_iterations, num_shards = max(numbers, default=-1) + 1, int(data.facts["num_shards"])
    return History(
        uri=run.uri,
        record=run.read_json(layout.RUN),
        data=data,
        base=read_manifest(run, base) if run.exists(base) else None,
        iterations=[_iteration(run, keys, t, num_shards) for t in range(num_iterations)],
        base_evaluated=read_manifest(run, evaluated) if run.exists(evaluated) else None,
    )


def _iteration(run: RunStore, keys: Any, t: int, num_shards: int) -> IterationHistory:
    def read(key: str) -> Manifest | None:
        return read_manifest(run, key) if key in keys else None

    shards = [
        (generated, read(layout.manifest_of(layout.ref_logprobs(t, shard))))
        for shard in range(num_shards)
        if (generated := read(layout.manifest_of(layout.generations(t, shard))))
    ]
    epochs: list[EpochHistory] = []
    while trained := read(layout.epoch_manifest(t, len(epochs))):
        epochs.append(EpochHistory(len(epochs), trained, read(layout.validation(t, len(epochs)))))
    return IterationHistory(t, shards, epochs, read(layout.checkpoint(t)), read(layout.evaluation(t)))
