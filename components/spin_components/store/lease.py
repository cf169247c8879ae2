"""Who may work on a run: a lease in its storage, renewed while work goes on, free again when its time is over.

The steps of one attempt share one lease, whatever pods or processes they are. Another attempt is refused while the
lease is alive. One that lost its lease finds out before it commits anything, because every commit reads it.
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
from spin_components.process import RUNNER
from spin_components.store import layout
from spin_components.store.limits import seconds
from spin_components.store.run import RunStore

logger = logging.getLogger(__name__)

DURATION = "SPIN_LEASE_S"
"""Names the seconds after which a lease that nobody renews is over; 300 by default."""


class Lease(BaseModel):
    """What `lease.json` says.

    Attributes:
        owner: id of the attempt.
        host: of the process that renewed it last.
        process: pid and start time of that process, or of the one that will start the attempt's next step here.
        renewed_at: seconds since 1970.
        duration_s: how long it holds from then on; 0 when it was given back.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    owner: str
    host: str
    process: str
    renewed_at: float
    duration_s: float

    @property
    def remaining_s(self) -> float:
        """Seconds for which it still holds; a process of this machine that has ended holds nothing."""
        if self.host == this_host() and not _is_alive(self.process):
            return 0.0
        return max(0.0, self.renewed_at + self.duration_s - time.time())


def read_lease(run: RunStore) -> Lease | None:
    """The lease on a run, whether it still holds or not.

    Raises:
        IntegrityError: something else lies in its place.
    """
    if run.read(layout.LEASE) is None:
        return None
    try:
        return Lease.model_validate(run.read_json(layout.LEASE))
    except ValidationError as error:
        raise IntegrityError(f"{run.uri_of(layout.LEASE)} is no lease; delete it if nobody works on the run") from error


def check_free(run: RunStore, owner: str = "") -> None:
    """Refuse to work on a run that another attempt works on.

    Raises:
        BusyError: naming where it runs, and for how long it holds the run if it has died.
    """
    lease = read_lease(run)
    if lease is None or lease.owner == owner or not (remaining := lease.remaining_s):
        return
    raise BusyError(
        f"another runner is at work on {run.uri}: attempt {lease.owner} on {lease.host.partition('/')[0]}, which last "
        f"gave a sign {time.time() - lease.renewed_at:.0f} s ago. Wait for it, end it, or choose another run.uri; "
        f"if it has died, the run is free in {remaining:.0f} s"
    )


class LeaseHolder:
    """Holds a run for one attempt, renewing the lease from a thread until `close`.

    Args:
        run: the run.
        owner: the attempt's id, the same for all its steps.
        take_over: whether a lease that another attempt let go of, or let run out, may be taken; an attempt does that
            once, when it begins.

    Raises:
        BusyError: another attempt holds the run, or has held it since this one began.
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
        """Make sure of the lease, and renew it; to be called before anything is committed.

        Raises:
            BusyError: another attempt has taken it.
        """
        lease = read_lease(self._run)
        if lease and lease.owner != self.owner:
            check_free(self._run, self.owner)
            if not self._take_over:
                raise BusyError(
                    f"attempt {lease.owner} has taken {self._run.uri} over from this one, which was silent for too "
                    "long; nothing more is written here. Run the same command to go on from where that one is"
                )
        self._write(self._duration_s)

    def release(self) -> None:
        """Give the run back; the attempt has ended."""
        if (lease := read_lease(self._run)) and lease.owner == self.owner:
            self._write(0.0)

    def close(self) -> None:
        """Stop renewing; what is left of the lease covers the time until the attempt's next step."""
        self._ended.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._ended.wait(self._duration_s / 4):
            try:
                self.claim()
            except BusyError as error:
                logger.error("this attempt has lost the run: %s", error)
                return
            except (SpinError, OSError) as error:
                logger.warning("the lease is not renewed: %s", error)

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
    """Name of this machine, or pod, since it was booted."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text('ascii').strip() if boot.exists() else ''}"


def _process(pid: int) -> str:
    """A process by its pid and, because pids are used again, by when it started; empty where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    if fields[0] in "ZX":  # it has ended, and nobody has asked how
        return ""
    return f"{pid}:{fields[19]}"  # field 22 of proc(5): start time in clock ticks since boot


def _is_alive(process: str) -> bool:
    pid = process.partition(":")[0]
    return pid.isdigit() and process == _process(int(pid))
