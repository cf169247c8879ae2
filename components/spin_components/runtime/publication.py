"""What a step leaves in the run's storage: its outputs, its manifest, its warnings and its metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from spin_components.machine import describe
from spin_components.record.events import EventLog
from spin_components.runtime.attempt import Attempt
from spin_components.settings.attempt import EvaluationSettings, HardwareSettings, PlacementSettings
from spin_components.settings.selection import SelectionSettings
from spin_components.settings.settings import Settings
from spin_components.settings.training import ControlSettings
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest
from spin_components.store.lease_holder import LeaseHolder
from spin_components.store.manifests import Manifest, finished, read_manifest
from spin_components.tracking.tracker import AttemptState, Branch, Series
from spin_components.tracking.trackers import Trackers, open_trackers

logger = logging.getLogger(__name__)

TRAINING_STEPS = ("train-epoch", "warm-up", "control")
"""Steps that train, with all ranks."""

_MODEL_STEPS = ("generate", "ref-logprob", *TRAINING_STEPS, "validate", "evaluate")
"""Steps that compute with a model."""

Inputs = dict[str, Any]


@dataclass
class Publication:
    """The writing half of a step; see `spin_components.runtime.step.Step`.

    Attributes:
        name: as in the DAG.
        run: the run's storage.
        hardware: `[hardware]` of the attempt.
        events: the step's event log.
        lease: the attempt's lease on the run; None in a process that writes nothing.
        inputs: what the step's outputs depend on, flat, once `Step.is_due` has been called.
        published: the step's manifest, once it is written or found.
        previous: a manifest made from other inputs that this step replaces; see `Step.is_due`.
        num_processes: that the step divides its work among, with a device or a group of devices each; not of training.
    """

    name: str
    run: RunStore
    hardware: HardwareSettings
    events: EventLog
    lease: LeaseHolder | None = None
    inputs: Inputs = field(default_factory=dict)
    published: Manifest | None = None
    previous: Manifest | None = None
    num_processes: int = 1
    _key: str = ""
    _number: int = 0
    _recorded: dict[str, Any] = field(default_factory=dict)
    _outputs: dict[str, FileDigest] = field(default_factory=dict)
    _trackers: dict[Branch, Trackers | None] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    @property
    def settings(self) -> Settings:
        """The settings that `prepare` recorded for the run, with the `[hardware]` of this attempt."""
        return self._attempt.settings

    @property
    def evaluation(self) -> EvaluationSettings:
        """This attempt's `[evaluation]`."""
        return self._attempt.evaluation

    @property
    def selection(self) -> SelectionSettings:
        """This attempt's `[selection]`."""
        return self._attempt.selection

    @property
    def placement(self) -> PlacementSettings:
        """This attempt's `[placement]`."""
        return self._attempt.placement

    @property
    def control(self) -> ControlSettings:
        """This attempt's `[control]`."""
        return self._attempt.control

    @property
    def max_iterations(self) -> int:
        """Number of iterations of this attempt."""
        return self._attempt.max_iterations

    def warn(self, message: str) -> None:
        """Record a warning as an event and in the log."""
        logger.warning(message)
        self.events.write("warning", message=message)

    def track(
        self, series: Series, global_step: int, values: Mapping[str, float], branch: Branch = "self-play"
    ) -> None:
        """Send metrics to the attempt's trackers, if it has any.

        Args:
            series: which metrics these are.
            global_step: optimizer steps done in the whole branch.
            values: by name; finite.
            branch: what they are of.
        """
        if not self.events.enabled:
            return  # one rank of several sends them
        if branch not in self._trackers:
            settings = self.settings.model_copy(update={"tracking": self._attempt.tracking})
            self._trackers[branch] = open_trackers(self.run, settings, self.warn, branch)
        if trackers := self._trackers[branch]:
            trackers.log(series, global_step, values)

    @contextmanager
    def write(self, key: str) -> Iterator[Path]:
        """Write one of the step's outputs: a file or folder at the path given, stored whole at the end of the block."""
        with self.run.staged(key) as staged:
            yield staged.path
        self._outputs |= staged.outputs

    def publish(
        self, facts: dict[str, Any], *, outputs: Mapping[str, FileDigest] | None = None, inputs: Inputs | None = None
    ) -> Manifest:
        """Write the step's manifest, which makes it complete.

        Args:
            facts: metrics, counts and addresses.
            outputs: key below the run to digest; those of `write` if not given.
            inputs: what they were made from; those of `is_due` if not given.

        Raises:
            BusyError: another attempt has taken the run.
        """
        manifest = Manifest(
            step=self.name,
            inputs=self.inputs if inputs is None else inputs,
            outputs=dict(self._outputs if outputs is None else outputs),
            facts=facts,
            duration_s=round(time.monotonic() - self._started, 3),
            machine=describe(
                self._num_gpus(),
                computes=self.name in _MODEL_STEPS,
                ranks=self.hardware.world_size if self.name in TRAINING_STEPS else 0,
            ),
        )
        for trackers in filter(None, self._trackers.values()):
            trackers.flush()  # a finished step does not run again, so nothing would send its metrics later
        self.commit(self._key, manifest)
        self.published = manifest
        shown = {name: value for name, value in facts.items() if name != "samples"}
        self.events.write("done", facts=shown, duration_s=manifest.duration_s)
        return manifest

    def keep(
        self,
        key: str,
        inputs: Inputs,
        write: Callable[[Path], None],
        *,
        manifest: str,
        what: str,
        replaces: bool = False,
    ) -> Manifest:
        """Write a file or folder beside the step's outputs, with a manifest of its own, unless it is there.

        Args:
            key: of the file or folder.
            inputs: what it is made from.
            write: makes it at the path given.
            manifest: key of its manifest.
            what: it is, for the manifest.
            replaces: whether one made from other inputs is replaced.

        Raises:
            InputsChangedError: it was made from other inputs, and is not replaced.
        """
        if replaces and self.run.exists(manifest) and read_manifest(self.run, manifest).inputs != inputs:
            self.run.delete(manifest)  # it means complete, and its files are about to be replaced
        if there := finished(self.run, manifest, inputs):
            return there
        with self.run.staged(key) as staged:
            write(staged.path)
        made = Manifest(step=f"{self.name} ({what})", inputs=inputs, outputs=staged.outputs)
        self.commit(manifest, made)
        return made

    def commit(self, key: str, manifest: Manifest) -> None:
        """Write a manifest while this attempt holds the lease.

        Raises:
            BusyError: another attempt has taken the run.
            IntegrityError: a file that the step read outside the run changed meanwhile.
        """
        self.run.check_sources()
        self.run.write_json(key, manifest.model_dump(mode="json"))

    @cached_property
    def _attempt(self) -> Attempt:
        """What `prepare` recorded for this attempt."""
        return Attempt(self.run, self.hardware, self._number, self._recorded)

    def _find(self, *, replaces: bool) -> Manifest | None:
        """The step's manifest, if the step need not run."""
        if not replaces:
            return finished(self.run, self._key, self.inputs)
        if not self.run.exists(self._key):
            return None
        self.previous = read_manifest(self.run, self._key)
        same = all(self.previous.inputs.get(name) == value for name, value in self.inputs.items())
        return self.previous if same else None

    def _num_gpus(self) -> int:
        """GPUs that the step takes where there are any."""
        if self.name not in _MODEL_STEPS or self.hardware.device == "cpu":
            return 0
        if self.name == "generate":
            return self.num_processes * self.settings.generation.tensor_parallel
        return self.hardware.world_size if self.name in TRAINING_STEPS else self.num_processes

    def _close(self, outcome: AttemptState) -> None:
        """Close the trackers, telling them how the attempt stands, then have all events stored."""
        for branch, trackers in self._trackers.items():
            if trackers:  # no later step belongs to a branch beside self-play, or it takes its run up again
                trackers.close("ended" if outcome == "running" and branch != "self-play" else outcome)
        self.events.close()
