"""Lease on a run: an object in its storage that gives one attempt at a time the right to write.

All steps of an attempt share the lease, in any pod or process, and renew it while they work. Another attempt is refused
until the lease expires or is released. Every attempt that takes the run over gets the next number; see
`spin_components.store.lease_holder`.

No machine's clock is compared with another's. On the machine of the holder, age is the difference of its monotonic
clock, which is one for all its processes and containers; elsewhere, the difference between two times of the storage's
clock: that of the last renewal, and that of the reading.
"""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spin_components.errors import BusyError, IntegrityError
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.checked_json import json_bytes, parse_json
from spin_components.store.processes import is_alive, pid_namespace, this_host
from spin_components.store.stored import Stored

RUNNER = "SPIN_RUNNER"
"""Environment variable: pid of the process that runs an attempt's steps one after another, on one machine."""

DURATION = "SPIN_LEASE_S"
"""Environment variable with the seconds after which a lease that is not renewed expires; default 300."""

_RESOLUTION_S = 1.0
"""Resolution of the times in an S3 server's answers."""


class Lease(BaseModel):
    """Content of `lease.json`.

    Attributes:
        owner: id of the attempt.
        number: of the attempt among those at this run, from 1; 0 if a version without numbers wrote the lease.
        host: machine of the process that renewed the lease last.
        namespace: PID namespace of that process; empty if unknown.
        process: pid and start time of that process, or of the local runner that starts the attempt's steps.
        renewed_at: time of the renewal by that machine's clock, seconds since 1970; shown, never compared.
        uptime_s: the same by that machine's monotonic clock; None if unknown.
        duration_s: seconds from then until it expires; 0 once it is released.
        read_age_s: age by the storage's clock when it was read; not stored.
        read_uptime_s: this machine's monotonic clock then; not stored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    owner: str
    number: int = 0
    host: str
    namespace: str = ""
    process: str
    renewed_at: float
    uptime_s: float | None = None
    duration_s: float
    read_age_s: float = Field(default=0.0, exclude=True)
    read_uptime_s: float = Field(default_factory=lambda: time.monotonic(), exclude=True)

    @property
    def is_local(self) -> bool:
        """Whether this process can see the one that renewed it: same machine, same PID namespace."""
        return self.host == this_host() and self.namespace in ("", pid_namespace())

    @property
    def age_s(self) -> float:
        """Seconds since the last renewal."""
        if self.uptime_s is not None and self.host == this_host():
            return max(0.0, time.monotonic() - self.uptime_s)
        return self.read_age_s + max(0.0, time.monotonic() - self.read_uptime_s)

    @property
    def remaining_s(self) -> float:
        """Seconds until the lease expires; 0 if it belongs to a process of this machine that has ended."""
        if self.is_local and not is_alive(self.process):
            return 0.0
        return max(0.0, self.duration_s - self.age_s)


def read_lease(run: RunStore) -> Lease | None:
    """Read the lease of a run, valid or expired; None if there is none.

    Raises:
        IntegrityError: the object is not a lease.
    """
    return read_stored_lease(run)[0]


def read_stored_lease(run: RunStore) -> tuple[Lease | None, Stored | None]:
    """Read the lease of a run and its object; raises as `read_lease`."""
    stored = run.read_stored(layout.LEASE)
    if stored is None:
        return None, None
    try:
        lease = Lease.model_validate(parse_json(stored.content, run.uri_of(layout.LEASE)))
    except ValidationError as error:
        raise IntegrityError(
            f"{run.uri_of(layout.LEASE)} is not a lease; delete it if no other attempt is running"
        ) from error
    if lease.host == this_host() and lease.uptime_s is not None:
        return lease, stored
    now = stored.now if stored.now is not None else run.now()
    if now is None or stored.written_at is None:  # read-only storage without a clock of its own
        age_s = time.time() - (stored.written_at or lease.renewed_at)
    else:
        age_s = now - stored.written_at - (_RESOLUTION_S if stored.now is not None else 0.0)
    return lease.model_copy(update={"read_age_s": max(0.0, age_s), "read_uptime_s": time.monotonic()}), stored


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
        f"renewed its lease {lease.age_s:.0f} s ago. Wait for it, end it, or choose another "
        f"run.uri; if it has died, its lease expires in {remaining:.0f} s"
    )


def release_ended(run: RunStore, owner: str) -> bool:
    """Release the lease of an attempt whose end is known from elsewhere, such as Kubeflow's API; True if it was held.

    Args:
        run: the run.
        owner: id of the attempt. Another attempt's lease is left as it is.
    """
    lease, stored = read_stored_lease(run)
    if lease is None or stored is None or lease.owner != owner or not lease.remaining_s:
        return False
    return run.replace(layout.LEASE, lease_bytes(lease.model_copy(update={"duration_s": 0.0})), stored.tag)


def lease_bytes(lease: Lease) -> bytes:
    """Return the content of a lease's object."""
    return json_bytes(lease.model_dump(mode="json"))
