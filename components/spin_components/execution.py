"""A running step: its settings, lease and events, the attempt's deadline, what it commits, clean failure."""

from __future__ import annotations

import errno
import logging
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from spin_components.attempt_settings import HardwareSettings, TrackingSettings
from spin_components.errors import SpinError, StorageError
from spin_components.evaluation_settings import EvaluationSettings
from spin_components.events import EventLog
from spin_components.machine import describe
from spin_components.process import ATTEMPT, STOPPED
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.lease import LeaseHolder, this_host
from spin_components.store.manifests import Manifest
from spin_components.store.run import RunStore, open_run
from spin_components.tracking.trackers import Outcome, Trackers, open_trackers

logger = logging.getLogger(__name__)

_QUIET_S = 2.0
_COMPUTING = ("generate", "ref-logprob", "train-epoch", "validate", "evaluate")
"""Steps that work with a model."""
OPTIONAL = ("evaluate",)
"""Steps whose failure is no other step's: the attempt goes on without them."""


@dataclass
class Step:
    """One step of a run as it executes.

    Attributes:
        is_last: whether the attempt ends with this step, so that the run is free.
    """

    run: RunStore
    events: EventLog
    hardware: HardwareSettings
    lease: LeaseHolder | None = None
    is_last: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def settings(self) -> Settings:
        """What `prepare` recorded for this run, with the hardware of this attempt."""
        recorded = Settings.model_validate(self.run.read_json(layout.RUN)["settings"])
        return recorded.model_copy(update={"hardware": self.hardware})

    @property
    def evaluation(self) -> EvaluationSettings:
        """What this attempt evaluates models by."""
        return EvaluationSettings.model_validate(self.run.read_json(layout.ATTEMPT).get("evaluation", {}))

    @cached_property
    def tracking(self) -> Trackers | None:
        """Where this attempt sends metrics beside its events; None for nowhere, and on all ranks but one."""
        wanted = TrackingSettings.model_validate(self.run.read_json(layout.ATTEMPT).get("tracking", {}))
        if not self.events.enabled:
            return None
        return open_trackers(self.run, self.settings.model_copy(update={"tracking": wanted}), self._warn)

    def _warn(self, message: str) -> None:
        logger.warning(message)
        self.events.write("warning", message=message)

    def close(self, outcome: Outcome) -> None:
        """Let go of trackers, telling them how the run stands, then have all events stored."""
        if trackers := self.__dict__.get("tracking"):
            trackers.close(outcome)
        self.events.close()

    @property
    def duration_s(self) -> float:
        return time.monotonic() - self.started

    def out_of_time(self) -> bool:
        """Whether the attempt's wall-clock limit has passed."""
        deadline = self.run.read_json(layout.ATTEMPT)["deadline"]
        return deadline is not None and time.time() >= deadline

    def stop(self, reason: str) -> str:
        """Record that this step ends before its work is done, on purpose."""
        logger.info("stopped: %s", reason)
        self.is_last = True
        self.events.write("stop", reason=reason)
        return STOPPED

    def reuse(self, manifest: Manifest) -> None:
        """Record that a finished step was found."""
        logger.info("already done, in %.1f s", manifest.duration_s)
        self.events.write("reuse", finished_at=manifest.finished_at)

    def finish(
        self, key: str, *, inputs: dict[str, Any], outputs: dict[str, Any] | None = None, facts: dict[str, Any]
    ) -> Manifest:
        """Write the step's manifest: from here on it is done."""
        name = str(self.events.labels["step"])
        manifest = Manifest(
            step=name,
            inputs=inputs,
            outputs=outputs or {},
            facts=facts,
            duration_s=round(self.duration_s, 3),
            machine=describe(
                self._num_gpus(name),
                computes=name in _COMPUTING,
                ranks=self.hardware.world_size if name == "train-epoch" else 0,
            ),
        )
        if trackers := self.__dict__.get("tracking"):
            trackers.flush()  # a step that is done is not done again, so nothing would send its metrics later
        self.commit(key, manifest)
        told = {name: value for name, value in facts.items() if name != "samples"}
        self.events.write("done", facts=told, duration_s=manifest.duration_s)
        return manifest

    def _num_gpus(self, name: str) -> int:
        """GPUs that a step of this name takes where there are any."""
        if name not in _COMPUTING or self.hardware.device == "cpu":
            return 0
        if name == "generate":
            return self.settings.generation.tensor_parallel
        return self.hardware.world_size if name == "train-epoch" else 1

    def commit(self, key: str, manifest: Manifest) -> None:
        """Write a manifest, if this attempt still holds the run.

        Raises:
            BusyError: another attempt has taken it.
        """
        if self.lease:
            self.lease.claim()
        self.run.write_json(key, manifest.model_dump(mode="json"))


@contextmanager
def step(name: str, run_uri: str, hardware: dict[str, Any] | None = None, **labels: int | None) -> Iterator[Step]:
    """A running step; its start, and how it failed if it does, become events.

    Args:
        name: of the step, as in the DAG.
        run_uri: the run's address.
        hardware: the attempt's `[hardware]` settings.
        labels: iteration, epoch, shard.
    """
    with open_run(run_uri) as run:
        if name == "prepare":
            run.probe()
        attempt = os.environ.get(ATTEMPT, "")
        owner, begins = attempt or f"{this_host()}:{os.getpid()}", name == "prepare" or not attempt
        with _full_disk_explained(run):
            lease = LeaseHolder(run, owner, take_over=begins)
        current = Step(run, EventLog(run, {"step": name, **labels}), HardwareSettings(**hardware or {}), lease)
        current.is_last = not attempt
        run.guard = lease.claim
        run.on_progress = _Transfers(current.events)
        outcome: Outcome = "failed"
        try:
            with _explained(current), _full_disk_explained(run):
                yield current
            outcome = "ended" if current.is_last and attempt else "running"
        except BaseException:
            current.is_last |= name not in OPTIONAL
            raise
        finally:
            current.close(outcome)
            lease.close()
            if current.is_last:
                with suppress(SpinError, OSError):  # it is over in a while by itself
                    lease.release()


@contextmanager
def _explained(current: Step) -> Iterator[None]:
    """Make the start of a step, and how it failed if it does, events."""
    current.events.write("start", pid=os.getpid())
    try:
        yield
    except SpinError as error:
        current.events.write("fail", error=type(error).__name__, message=str(error), exit_code=error.exit_code)
        raise
    except Exception as error:
        current.events.write(
            "fail", error=type(error).__name__, message=str(error), exit_code=1, traceback=traceback.format_exc()
        )
        raise


@contextmanager
def _full_disk_explained(run: RunStore) -> Iterator[None]:
    """Say what is full."""
    try:
        yield
    except SpinError:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        raise StorageError(
            f"no space is left below {run.scratch}; free some, and run the same command ({error})"
        ) from error


def _is_full(error: Exception) -> bool:
    """Whether a disk is full; libraries that write by themselves tell it in words only."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


class _Transfers:
    """Makes events of transfers that take a while."""

    def __init__(self, events: EventLog) -> None:
        self._events, self._told = events, time.monotonic()
        self._what, self._since = "", (time.monotonic(), 0)

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._since = what, (now, done)
        if now - self._told > _QUIET_S:
            self._told = now
            began, before = self._since
            rate = (done - before) / max(now - began, 1e-6)
            fields = {"rate": round(rate / 2**20, 1), "eta_s": round((total - done) / rate, 1)} if rate > 0 else {}
            self._events.write("transfer", what=what, done=done >> 20, total=total >> 20, unit="MiB", **fields)
            logger.info("%s: %d of %d MiB", what, done >> 20, total >> 20)
