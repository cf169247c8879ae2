"""The step protocol: what every step of a run does around its own work.

    with Step.begin("generate", run_uri, after=[reference_uri], iteration=t, shard=s) as step:
        if step.is_due(manifest_key, lambda: inputs):
            ...                                        # step.progress, step.write, step.warn, step.track
            step.publish(facts)
        return step.returns(address)

`begin` takes the run's lease and records the start of the step, how it ended, and why it failed. `is_due` returns False
where a step before this one has stopped, where the manifest is there already (an error if it was made from other
inputs), and where the attempt's time is up. `publish` writes the manifest last, and only while the lease is held.
SIGINT and SIGTERM end the step: at once, or with the block of `interruption_postponed`, which can save before.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from spin_components.errors import SpinError
from spin_components.machine import describe
from spin_components.record.events import EventLog, Progress
from spin_components.runtime.guards import LoggedProgress, TransferEvents, failures_recorded, full_disk_explained
from spin_components.runtime.process import ATTEMPT, STOPPED
from spin_components.runtime.signals import Interrupted, interruptible, postponed
from spin_components.settings.attempt import EvaluationSettings, HardwareSettings, TrackingSettings
from spin_components.settings.selection import SelectionSettings
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest
from spin_components.store.lease import LeaseHolder, this_host
from spin_components.store.manifests import Manifest, finished, read_manifest
from spin_components.store.open import open_run
from spin_components.tracking.tracker import AttemptState, Series
from spin_components.tracking.trackers import Trackers, open_trackers

logger = logging.getLogger(__name__)

_MODEL_STEPS = ("generate", "ref-logprob", "train-epoch", "validate", "evaluate")
"""Steps that compute with a model."""
OPTIONAL = ("evaluate",)
"""Steps whose failure leaves the attempt running."""

Inputs = dict[str, Any]


def read_settings(run: RunStore, hardware: HardwareSettings) -> Settings:
    """The settings that `prepare` recorded for a run, with the `[hardware]` of this attempt."""
    recorded = Settings.model_validate(run.read_json(layout.RUN)["settings"])
    return recorded.model_copy(update={"hardware": hardware})


def _hardware_of(run: RunStore) -> HardwareSettings:
    """`[hardware]` as `prepare` recorded it for the attempt; the default where nothing is recorded yet."""
    attempt = run.read_json(layout.ATTEMPT) if run.exists(layout.ATTEMPT) else {}
    return HardwareSettings.model_validate(attempt.get("hardware", {}))


@dataclass
class Step:
    """One step of a run as it executes; made by `begin`, or by `join` in a process that works for it.

    Attributes:
        name: as in the DAG.
        run: the run's storage.
        hardware: `[hardware]` of the attempt.
        events: the step's event log.
        lease: the attempt's lease on the run; None in a process that writes nothing.
        is_last: whether the attempt ends with this step, which then gives the lease back.
        is_stopped: whether the step, or one before it, ended before its work was done.
        inputs: what the step's outputs depend on, flat, once `is_due` has been asked.
        published: the step's manifest, once it is written or found.
        previous: a manifest made from other inputs that this step replaces; see `is_due`.
    """

    name: str
    run: RunStore
    hardware: HardwareSettings
    events: EventLog
    lease: LeaseHolder | None = None
    is_last: bool = False
    is_stopped: bool = False
    inputs: Inputs = field(default_factory=dict)
    published: Manifest | None = None
    previous: Manifest | None = None
    _key: str = ""
    _outputs: dict[str, FileDigest] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _is_interrupted: Callable[[], bool] = lambda: False

    @classmethod
    @contextmanager
    def begin(
        cls,
        name: str,
        run_uri: str,
        hardware: Mapping[str, Any] | None = None,
        *,
        after: Iterable[str] = (),
        **labels: int | None,
    ) -> Iterator[Step]:
        """Run a step.

        Args:
            name: of the step, as in the DAG.
            run_uri: the run's address.
            hardware: the attempt's `[hardware]` settings; None for what `prepare` recorded.
            after: what the steps before this one returned. Where one of them is `STOPPED`, so is this step: nothing is
                read or written.
            labels: iteration, epoch, shard; fields of every event.

        Raises:
            BusyError: another attempt holds the run.
            Interrupted: the process got SIGINT or SIGTERM.
        """
        with open_run(run_uri) as run:
            is_stopped = STOPPED in after
            machine = HardwareSettings(**hardware or {}) if hardware is not None or is_stopped else _hardware_of(run)
            if is_stopped:
                yield cls(name, run, machine, EventLog(run, {"step": name}, enabled=False), is_stopped=True)
                return
            if name == "prepare":
                run.probe()
            attempt = os.environ.get(ATTEMPT, "")
            owner, is_first = attempt or f"{this_host()}:{os.getpid()}", name == "prepare" or not attempt
            with full_disk_explained(run):
                lease = LeaseHolder(run, owner, take_over=is_first)
            step = cls(name, run, machine, EventLog(run, {"step": name, **labels}), lease, is_last=not attempt)
            run.guard = lease.claim
            run.on_progress = TransferEvents(step.events)
            outcome: AttemptState = "failed"
            try:
                with interruptible(), failures_recorded(step.events), full_disk_explained(run):
                    yield step
                outcome = "ended" if step.is_last and attempt else "running"
            except BaseException as error:
                step.is_last |= name not in OPTIONAL
                outcome = "running" if isinstance(error, Interrupted) else "failed"
                raise
            finally:
                step._close(outcome)
                lease.close()
                if step.is_last:
                    with suppress(SpinError, OSError):  # the lease runs out by itself
                        lease.release()

    @classmethod
    @contextmanager
    def join(
        cls,
        name: str,
        run_uri: str,
        hardware: HardwareSettings,
        *,
        attempt: str,
        rank: int,
        key: str,
        inputs: Inputs,
        **labels: int,
    ) -> Iterator[Step]:
        """Work for a step that another process has begun, as one of its ranks. Rank 0 writes events and outputs.

        Args:
            name: of the step.
            run_uri: the run's address.
            hardware: the attempt's `[hardware]` settings.
            attempt: owner of the run's lease.
            rank: of this process.
            key: of the step's manifest.
            inputs: what the step's outputs depend on, flat.
            labels: iteration, epoch; fields of every event.

        Raises:
            BusyError: another attempt holds the run.
        """
        with open_run(run_uri) as run:
            events = EventLog(run, {"step": name, **labels, "rank": rank}, enabled=rank == 0)
            lease = LeaseHolder(run, attempt, take_over=False) if rank == 0 else None
            run.guard = lease.claim if lease else None
            step = cls(name, run, hardware, events, lease, _key=key, inputs=inputs)
            outcome: AttemptState = "failed"
            try:
                yield step
                outcome = "running"
            finally:
                step._close(outcome)
                if lease:
                    lease.close()

    @cached_property
    def settings(self) -> Settings:
        """The settings that `prepare` recorded for the run, with the `[hardware]` of this attempt."""
        return read_settings(self.run, self.hardware)

    @cached_property
    def evaluation(self) -> EvaluationSettings:
        """This attempt's `[evaluation]`."""
        return EvaluationSettings.model_validate(self._attempt.get("evaluation", {}))

    @property
    def selection(self) -> SelectionSettings:
        """This attempt's `[selection]`."""
        return SelectionSettings.model_validate(self._attempt.get("selection", {}))

    @property
    def max_iterations(self) -> int:
        """Number of iterations of this attempt."""
        return int(self._attempt.get("max_iterations", self.settings.spin.max_iterations))

    @property
    def attempt(self) -> str:
        """Id of the attempt, which owns the run's lease."""
        return self.lease.owner if self.lease else ""

    def is_due(self, key: str, inputs: Callable[[], Inputs], *, is_timed: bool = True, replaces: bool = False) -> bool:
        """Whether there is work to do: the step is neither stopped nor finished, and there is time left.

        Args:
            key: of the step's manifest.
            inputs: returns every setting and digest that the outputs depend on, flat; not called in a stopped step.
            is_timed: whether the step stops when the attempt's time is up.
            replaces: whether outputs made from other inputs are replaced, which needs that nothing depends on them.
                Inputs that are not asked for any more are then no difference.

        Raises:
            InputsChangedError: the step finished with other inputs, and does not replace them.
        """
        if self.is_stopped:
            return False
        self._key, self.inputs = key, inputs()
        self.published = self._find(replaces=replaces)
        if self.published:
            logger.info("already done, in %.1f s", self.published.duration_s)
            self.events.write("reuse", finished_at=self.published.finished_at)
            return False
        if is_timed and self.out_of_time():
            self.stop()
            return False
        return True

    def returns(self, address: str) -> str:
        """What the step function returns: an address, or `STOPPED` where the step did not come to its end."""
        return STOPPED if self.is_stopped else address

    def out_of_time(self) -> bool:
        """Whether the attempt's wall-clock limit has passed, or a signal has come; reads storage once."""
        deadline = self._attempt["deadline"]
        return self._is_interrupted() or (deadline is not None and time.time() >= deadline)

    def stop(self, reason: str = "max_time") -> None:
        """End the step, and the attempt with it, before its work is done."""
        logger.info("stopped: %s", reason)
        self.is_stopped = self.is_last = True
        self.events.write("stop", reason=reason)

    @contextmanager
    def interruption_postponed(self) -> Iterator[None]:
        """Have SIGINT and SIGTERM make `out_of_time` true, and end the step only with the block."""
        with postponed() as self._is_interrupted:
            yield

    def progress(self, total: int, unit: str, *, done: int = 0, verb: str = "") -> Progress:
        """Report the step's progress as events.

        Args:
            total: how many there are to do.
            unit: what is counted, in the plural.
            done: how many an earlier attempt did.
            verb: begins a log line, e.g. "scored"; empty logs nothing.
        """
        if verb:
            return LoggedProgress(self.events, total, unit, verb)
        return Progress(self.events, total, unit, done=done)

    def warn(self, message: str) -> None:
        """Record a warning as an event and in the log."""
        logger.warning(message)
        self.events.write("warning", message=message)

    def track(self, series: Series, global_step: int, values: Mapping[str, float]) -> None:
        """Send metrics to the attempt's trackers, if it has any.

        Args:
            series: which metrics these are.
            global_step: optimizer steps done in the whole run.
            values: by name; finite.
        """
        if self._trackers:
            self._trackers.log(series, global_step, values)

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
                ranks=self.hardware.world_size if self.name == "train-epoch" else 0,
            ),
        )
        if trackers := self.__dict__.get("_trackers"):
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
        if self.lease:
            self.lease.claim()
        self.run.write_json(key, manifest.model_dump(mode="json"))

    @cached_property
    def _attempt(self) -> dict[str, Any]:
        """What `prepare` recorded for this attempt; read once."""
        return self.run.read_json(layout.ATTEMPT)

    @cached_property
    def _trackers(self) -> Trackers | None:
        """Where this attempt sends metrics beside its events; None for nowhere, and on all ranks but one."""
        if not self.events.enabled:
            return None
        wanted = TrackingSettings.model_validate(self._attempt.get("tracking", {}))
        return open_trackers(self.run, self.settings.model_copy(update={"tracking": wanted}), self.warn)

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
            return self.settings.generation.tensor_parallel
        return self.hardware.world_size if self.name == "train-epoch" else 1

    def _close(self, outcome: AttemptState) -> None:
        """Close the trackers, telling them how the attempt stands, then have all events stored."""
        if trackers := self.__dict__.get("_trackers"):
            trackers.close(outcome)
        self.events.close()
