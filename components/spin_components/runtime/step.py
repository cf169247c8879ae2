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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from spin_components.record.events import EventLog, Progress
from spin_components.runtime.guards import LoggedProgress, TransferEvents, failures_recorded, full_disk_explained
from spin_components.runtime.process import ATTEMPT, STOPPED
from spin_components.runtime.publication import Inputs, Publication
from spin_components.runtime.signals import Interrupted, interruptible, postponed
from spin_components.settings.attempt import HardwareSettings
from spin_components.store import layout
from spin_components.store.lease_holder import LeaseHolder
from spin_components.store.open import open_run
from spin_components.store.processes import this_host
from spin_components.tracking.tracker import AttemptState

logger = logging.getLogger(__name__)

_OPTIONAL = ("evaluate", "control")


def is_optional(name: str, iteration: int | None, *, decides: bool) -> bool:
    """Whether a step's failure leaves the attempt running: training goes on without an evaluation or a control.

    Args:
        name: of the step.
        iteration: its label; None for a step that has none.
        decides: whether verdicts wait for the evaluation; only those of controls are optional then.
    """
    if name == "evaluate" and decides:
        return iteration is not None and layout.controlled(iteration) is not None
    return name in _OPTIONAL


@dataclass
class Step(Publication):
    """One step of a run as it executes; made by `begin`, or by `join` in a process that works for it.

    Attributes, beside those of `Publication`:
        is_last: whether the attempt ends with this step, which then gives the lease back.
        is_stopped: whether the step, or one before it, ended before its work was done.
    """

    is_last: bool = False
    is_stopped: bool = False
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
            is_recorded = hardware is None and not is_stopped and run.exists(layout.ATTEMPT)
            record = run.read_json(layout.ATTEMPT) if is_recorded else {}
            machine = HardwareSettings.model_validate(hardware or record.get("hardware", {}))
            if is_stopped:
                yield cls(name, run, machine, EventLog(run, {"step": name}, enabled=False), is_stopped=True)
                return
            if name == "prepare":
                run.probe()
            attempt = os.environ.get(ATTEMPT, "")
            owner, is_first = attempt or f"{this_host()}:{os.getpid()}", name == "prepare" or not attempt
            with full_disk_explained(run):
                lease = LeaseHolder(run, owner, take_over=is_first, label=label_of(name, labels))
            events = EventLog(run, {"step": name, **labels}, attempt=lease.number, offset_s=lease.offset_s)
            number = lease.number if attempt else 0  # a step on its own is an attempt, with an earlier one's record
            step = cls(name, run, machine, events, lease, is_last=not attempt, _number=number, _recorded=record)
            run.guard = lease.check
            run.on_progress = TransferEvents(step.events)
            outcome: AttemptState = "failed"
            is_whole = False
            try:
                with interruptible(), failures_recorded(step.events), full_disk_explained(run):
                    yield step
                outcome, is_whole = "ended" if step.is_last and attempt else "running", not step.is_stopped
            except BaseException as error:
                decides = name == "evaluate" and step.selection.waits_for_evaluation
                step.is_last |= not is_optional(name, labels.get("iteration"), decides=decides)
                outcome = "running" if isinstance(error, Interrupted) else "failed"
                raise
            finally:
                step._close(outcome)
                lease.close(is_last=step.is_last, with_others=is_whole)

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
            label = f"{label_of(name, labels)}-rank"
            lease = LeaseHolder(run, attempt, take_over=False, label=label) if rank == 0 else None
            number, offset_s = (lease.number, lease.offset_s) if lease else (0, 0.0)
            labels = {**labels, "rank": rank}
            events = EventLog(run, {"step": name, **labels}, attempt=number, offset_s=offset_s, enabled=rank == 0)
            run.guard = lease.check if lease else None
            step = cls(name, run, hardware, events, lease, _key=key, inputs=inputs)
            outcome: AttemptState = "failed"
            try:
                yield step
                outcome = "running"
            finally:
                step._close(outcome)
                if lease:
                    lease.close()

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

    @contextmanager
    def part(self, **labels: int) -> Iterator[None]:
        """Have the events of a block, and the duration in its manifest, be those of a part of the step.

        Args:
            labels: fields of the block's events, beside the step's.
        """
        before, self.events.labels = self.events.labels, {**self.events.labels, **labels}
        self._started = time.monotonic()
        try:
            yield
        finally:
            self.events.labels, self._started = before, time.monotonic()

    def returns(self, address: str) -> str:
        """What the step function returns: an address, or `STOPPED` where the step did not come to its end."""
        return STOPPED if self.is_stopped else address

    def out_of_time(self) -> bool:
        """Whether the attempt's wall-clock limit has passed, or a signal has come; reads storage once."""
        deadline = self._attempt.deadline
        return self._is_interrupted() or (deadline is not None and self.now() >= deadline)

    def now(self) -> float:
        """Return the time by the storage's clock, seconds since 1970."""
        return time.time() + (self.lease.offset_s if self.lease else 0.0)

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


def label_of(name: str, labels: Mapping[str, int | None]) -> str:
    """Return the name of a step within its attempt, e.g. `generate-0-1`."""
    return "-".join([name, *(str(number) for number in labels.values() if number is not None)])
