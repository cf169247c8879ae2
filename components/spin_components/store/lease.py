"""Lease on a run: an object in its storage that gives one attempt at a time the right to write.

All steps of an attempt share the lease, in any pod or process, and renew it while they work. Another attempt is refused
until the lease expires or is released. Every commit reads the lease first, so an attempt that lost it writes nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from spin_components.errors import BusyError, IntegrityError, SpinError
from spin_components.machine import seconds
from spin_components.store import layout
from spin_components.store.base import RunStore

RUNNER = "SPIN_RUNNER"
"""Environment variable: pid of the process that runs an attempt's steps one after another, on one machine."""


logger = logging.getLogger(__name__)


DURATION = "SPIN_LEASE_S"
"""Environment variable with the seconds after which a lease that is not renewed expires; default 300."""


class Lease(BaseModel):
    """Content of `lease.json`.

    Attributes:
        owner: id of the attempt.
        host: machine of the process that renewed the lease last.
        process: pid and start time of that process, or of the local runner that starts the attempt's steps.
        renewed_at: time of the renewal, seconds since 1970.
        duration_s: seconds from then until it expires; 0 once it is released.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    owner: str
    host: str
    process: str
    renewed_at: float
    duration_s: float

    @property
    def remaining_s(self) -> float:
        """Seconds until the lease expires; 0 if it belongs to a process of this machine that has ended."""
        if self.host == this_host() and not _is_alive(self.process):
            return 0.0
        return max(0.0, self.renewed_at + self.duration_s - time.time())


def read_lease(run: RunStore) -> Lease | None:
    """Read the lease of a run, valid or expired; None if there is none.

    Raises:
        IntegrityError: the object is not a lease.
    """
    if run.read(layout.LEASE) is None:
        return None
    try:
        return Lease.model_validate(run.read_json(layout.LEASE))
    except ValidationError as error:
        raise IntegrityError(
            f"{run.uri_of(layout.LEASE)} is not a lease; delete it if no other attempt is running"
        ) from error


def check_free(run: RunStore, owner: str = "") -> None:
    """Check that no other attempt holds the lease.

    Args:
        run: the run.
        owner: id of the own attempt; empty for none.

    Raises:
        BusyError: another attempt holds it; the message says on which machine and until when.
    """
    lease = read_lease(run)
    if lease is None or lease.owner == owner or not (remaining := lease.remaining_s):
        return
    raise BusyError(
        f"another runner is at work on {run.uri}: attempt {lease.owner} on {lease.host.partition('/')[0]}, which last "
        f"renewed its lease {time.time() - lease.renewed_at:.0f} s ago. Wait for it, end it, or choose another "
        f"run.uri; if it has died, its lease expires in {remaining:.0f} s"
    )


class LeaseHolder:
    """Holds the lease for one attempt and renews it in a thread until `close`.

    Args:
        run: the run.
        owner: id of the attempt, shared by all its steps.
        take_over: whether to take over another attempt's released or expired lease, which only the first step of an
            attempt may do.

    Raises:
        BusyError: another attempt holds the lease, or has taken it since this one began.
    """

    def __init__(self, run: RunStore, owner: str, *, take_over: bool) -> None:
        self._run, self.owner = run, owner
        self._take_over = take_over
        self._duration_s = seconds(DURATION, 300)
        self._ended = threading.Event()
        self.claim()
        self._take_over = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def claim(self) -> None:
        """Check that the lease is this attempt's and renew it; called before every commit.

        Raises:
            BusyError: another attempt has taken it.
        """
        lease = read_lease(self._run)
        if lease and lease.owner != self.owner:
            check_free(self._run, self.owner)
            if not self._take_over:
                raise BusyError(
                    f"attempt {lease.owner} has taken {self._run.uri} over from this one, whose lease had expired; "
                    "nothing more is written here. Once the other attempt has ended, the same command resumes the run"
                )
        self._write(self._duration_s)

    def release(self) -> None:
        """Release the lease at the end of the attempt."""
        if (lease := read_lease(self._run)) and lease.owner == self.owner:
            self._write(0.0)

    def close(self) -> None:
        """Stop renewing; the lease stays valid until it expires, for the attempt's next step."""
        self._ended.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._ended.wait(self._duration_s / 4):
            try:
                self.claim()
            except BusyError as error:
                logger.error("this attempt has lost its lease: %s", error)
                return
            except (SpinError, OSError) as error:
                logger.warning("the lease could not be renewed: %s", error)

    def _write(self, duration_s: float) -> None:
        lease = Lease(
            owner=self.owner,
            host=this_host(),
            process=_process(int(os.environ.get(RUNNER, os.getpid()))),
            renewed_at=time.time(),
            duration_s=duration_s,
        )
        self._run.write_json(layout.LEASE, lease.model_dump(mode="json"))


@cache
def this_host() -> str:
    """Return the name of this machine or pod with the id of its boot."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text('ascii').strip() if boot.exists() else ''}"


def _process(pid: int) -> str:
    """Return a process's identity, pid and start time (pids are reused); empty if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    if fields[0] in "ZX":  # zombie or dead
        return ""
    return f"{pid}:{fields[19]}"  # field 22 of proc(5): start time in clock ticks since boot


def _is_alive(process: str) -> bool:
    pid = process.partition(":")[0]
    return pid.isdigit() and process == _process(int(pid))
