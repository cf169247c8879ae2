"""All manifests of a run, by iteration and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
    def published_epoch(self) -> int | None:
        """Number of the epoch whose policy was published; None if none is."""
        return self.published.facts["epoch"] if self.published else None

    @property
    def check(self) -> Manifest | None:
        """Manifest of the published policy's validation; None if it is not finished, or lost."""
        epoch = self.published_epoch
        return self.epochs[epoch].check if epoch is not None and epoch < len(self.epochs) else None

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
        warm_up: the warm-up, without shards; None where there is none.
        controls: by iteration, its control, without shards.
    """

    uri: str
    record: dict[str, Any]
    data: Manifest
    base: Manifest | None
    iterations: list[IterationHistory]
    base_evaluated: Manifest | None = None
    warm_up: IterationHistory | None = None
    controls: dict[int, IterationHistory] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Settings by section, as recorded in `run.json`."""
        return dict(self.record["settings"])

    @property
    def measure(self) -> str:
        """What decided last: the newest attempt may have another `selection.measure` than the first."""
        published = self.published
        facts = published[-1].published.facts if published and published[-1].published else {}
        return str(facts.get("measure", self.settings.get("selection", {}).get("measure", "nll")))

    @property
    def published(self) -> list[IterationHistory]:
        """Finished iterations."""
        return [iteration for iteration in self.iterations if iteration.published]

    @property
    def start(self) -> int:
        """The reference of iteration 0: `layout.WARM_UP`, or `layout.BASE` where that lowered no loss or is not
        validated."""
        return layout.WARM_UP if self.warm_up and self.warm_up.check else layout.BASE

    @property
    def start_check(self) -> Manifest | None:
        """Manifest of the validation of the reference of iteration 0."""
        return self.warm_up.check if self.warm_up and self.warm_up.check else self.base

    @property
    def best(self) -> int | None:
        """Iteration of the best model, as `start` where no iteration is better; None if no iteration is finished."""
        published = {it.number: it.published.facts for it in self.iterations if it.published}
        if not published or not self.start_check:
            return None
        losses = {
            self.start: self.start_check.facts["val_loss"],
            **{t: facts["val_loss"] for t, facts in published.items()},
        }
        judged = published[max(published)].get("best")  # with the rules of the newest attempt
        rejected = [t for t, facts in published.items() if facts.get("outcome") in REJECTED]
        return lowest(losses, rejected) if judged is None else int(judged)

    def manifests(self) -> Iterator[Manifest]:
        """Iterate over all manifests."""
        yield self.data
        yield from (manifest for manifest in (self.base, self.base_evaluated) if manifest)
        for iteration in (*([self.warm_up] if self.warm_up else []), *self.iterations, *self.controls.values()):
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
        warm_up=_epochs_alone(run, layout.WARM_UP, layout.WARM_UP_MANIFEST),
        controls={
            t: control
            for t in range(num_iterations)
            if (control := _epochs_alone(run, layout.control(t), layout.control_manifest(t)))
        },
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
    return IterationHistory(t, shards, _epochs(t, read), read(layout.checkpoint(t)), read(layout.evaluation(t)))


def _epochs_alone(run: RunStore, number: int, manifest: str) -> IterationHistory | None:
    """The warm-up or a control; None if no epoch of it is finished.

    Args:
        run: the run.
        number: see `layout.iteration`.
        manifest: key of the manifest of the whole.
    """
    keys = run.sizes(layout.iteration(number)).keys()

    def read(key: str) -> Manifest | None:
        return read_manifest(run, key) if key in keys else None

    epochs = _epochs(number, read)
    return IterationHistory(number, [], epochs, read(manifest), read(layout.evaluation(number))) if epochs else None


def _epochs(number: int, read: Callable[[str], Manifest | None]) -> list[EpochHistory]:
    epochs: list[EpochHistory] = []
    while trained := read(layout.epoch_manifest(number, len(epochs))):
        epochs.append(EpochHistory(len(epochs), trained, read(layout.validation(number, len(epochs)))))
    return epochs
