"""A run in its second iteration, whose steps can be repeated; its reference differs from the base model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_components.generate.step import generate_shard
from spin_components.ref_logprob.step import score_shard
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.train_epoch.step import train
from support.playing import begin, hardware, play_iteration


@dataclass(frozen=True, slots=True)
class SecondIteration:
    """Steps of the second iteration, which are run again at each call.

    Attributes:
        base: the base model.
        reference: the policy of iteration 0.
    """

    settings: Settings
    base: str
    reference: str

    @property
    def run(self) -> LocalRun:
        return LocalRun(Path(self.settings.run.uri))

    def sample(self, policy: str = "") -> None:
        """Sample answers from the reference, or from another policy."""
        key = layout.generations(1, 0)
        self._forget(layout.manifest_of(key))
        generate_shard(self.settings.run.uri, 1, 0, policy or self.reference, hardware(self.settings))

    def score(self, **changes: Any) -> dict[str, Any]:
        """Score the pairs and return the facts of the manifest; keyword arguments change `[hardware]`."""
        key = layout.ref_logprobs(1, 0)
        self._forget(layout.manifest_of(key))
        source = self.run.uri_of(layout.generations(1, 0))
        machine = {**hardware(self.settings), **changes}
        score_shard(self.settings.run.uri, 1, 0, self.reference, source, machine)
        return read_manifest(self.run, layout.manifest_of(key)).facts

    def train(self) -> None:
        self._forget(layout.epoch_manifest(1, 0))
        scores = [self.run.uri_of(layout.ref_logprobs(1, 0))]
        train(self.settings.run.uri, 1, 0, self.reference, scores, hardware(self.settings))

    def _forget(self, key: str) -> None:
        if self.run.exists(key):
            self.run.delete(key)


def begin_second_iteration(make: Callable[..., Settings]) -> SecondIteration:
    """Run the first iteration on a dozen questions, with history on as by default."""
    settings = make(data={"max_train_records": 12}, generation={"max_new_tokens": 6}, spin={"max_iterations": 2})
    base = begin(settings)
    return SecondIteration(settings, base, play_iteration(settings, 0, base))
