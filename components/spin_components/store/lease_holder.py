"""Takes the lease on a run, renews it, and checks before each write that this step still has the right to write.

The right is decided by files below `leases/` that are never replaced:

    leases/00000007.json                             attempt 7 took the run over; those below 7 write nothing more
    leases/00000007/generate-0-1.0002-5e0c3a7f.json  second try of a step of attempt 7, at work; it removed the file
                                                     of the first, which writes nothing more
    leases/00000007/ending                           attempt 7 ends: its last step at work releases the lease

`lease.json` is the sign of life: it says until when no other attempt may take the run over. A write of it that arrives
late, from an attempt that has lost the run, gives nobody a right.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from contextlib import suppress

from spin_components.errors import BusyError, SpinError
from spin_components.machine import seconds
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.checked_json import json_bytes, parse_json
from spin_components.store.lease import (
    DURATION,
    RUNNER,
    Lease,
    check_free,
    lease_bytes,
    read_lease,
    read_stored_lease,
)
from spin_components.store.processes import identity, is_alive, pid_namespace, this_host
from spin_components.store.stored import Stored
from spin_components.store.write_right import AT_WORK, WriteRight, highest_number, taken_over, tries

logger = logging.getLogger(__name__)

_ENDING = "ending"
_MOMENT_S = 2.0
"""Time for an attempt between its two writes: the file of its number, and its first `lease.json`."""
_OFFSET_S = 5.0
_TRIES = 8


class LeaseHolder:
    """One step's share in its attempt's lease, which it renews in a thread until `close`.

    Args:
        run: the run.
        owner: id of the attempt, shared by all its steps.
        take_over: whether to take over another attempt's released or expired lease, which only the first step of an
            attempt may do.
        label: name of the step within the attempt; of two processes with one label, the later one has the right.

    Attributes:
        number: of the attempt among those at this run.
        tried: which try of the step this is, from 1.
        offset_s: seconds by which the storage's clock is ahead of this machine's; 0 if they agree within 5 s.

    Raises:
        BusyError: another attempt holds the lease, or has taken it since this one began.
    """

    def __init__(self, run: RunStore, owner: str, *, take_over: bool, label: str = "step") -> None:
        self._run, self.owner, self._label = run, owner, label
        self._duration_s = seconds(DURATION, 300)
        self._ended = threading.Event()
        self.number, self.offset_s = 0, 0.0
        self.tried, self._own_key = self._register(self._enter(take_over))
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()

    @property
    def right(self) -> WriteRight:
        """What the right to write depends on, for other processes of the step."""
        return WriteRight(owner=self.owner, number=self.number, label=self._label, key=self._own_key)

    def check(self) -> None:
        """Check that neither another attempt nor a later try of this step has begun; called before every write.

        Raises:
            BusyError: one has.
        """
        self.right.check(self._run)

    def claim(self) -> None:
        """Check the right to write, and renew the lease; raises as `check`."""
        self.check()
        self._renew(self._duration_s)

    def release(self, *, with_others: bool = True) -> None:
        """Release the lease at the end of the attempt.

        Args:
            with_others: whether to release it although other steps of the attempt are at work; otherwise the last of
                them does so.
        """
        folder = layout.steps_at_work(self.number)
        if not with_others and self._others_at_work():
            self._run.write(f"{folder}/{_ENDING}", b"")
            if self._others_at_work():  # else they ended before they could see that
                return
        lease = read_lease(self._run)
        if lease and lease.owner == self.owner and lease.number == self.number:
            self._renew(0.0)

    def close(self, *, is_last: bool = False, with_others: bool = True) -> None:
        """Stop renewing; the lease stays valid until it expires, for the attempt's next step.

        Args:
            is_last: whether the attempt ends with this step, which then releases the lease.
            with_others: see `release`.
        """
        self._ended.set()
        self._thread.join()
        ending = f"{layout.steps_at_work(self.number)}/{_ENDING}"
        with suppress(SpinError, OSError):  # the lease runs out by itself
            self._run.remove(self._own_key)
            if is_last:
                self.release(with_others=with_others)
            elif ending in self._run.sizes(layout.LEASES):
                self.release(with_others=False)

    def _enter(self, take_over: bool) -> list[str]:
        """Join the own attempt, or take the run over; returns the files below `leases/`."""
        for _ in range(_TRIES):
            lease, stored = read_stored_lease(self._run)
            tag = stored.tag if stored else None
            keys = sorted(self._run.sizes(layout.LEASES))
            highest = highest_number(keys)
            number, owner = (lease.number, lease.owner) if lease else (0, "")
            if number < highest:  # the lease was deleted, or an older attempt's write of it arrived late
                number, owner = highest, self._owner_of(highest)
            if owner == self.owner:
                self.number = number
                self.offset_s = self._offset(stored)
                if not self._run.replace(layout.LEASE, self._content(self._duration_s), tag):
                    self._renew(self._duration_s)  # another step of the attempt renewed it in the same moment
                return keys
            check_free(self._run, self.owner)
            if lease and not take_over:
                raise taken_over(self._run, self.owner, lease)
            if (lease.number if lease else 0) < highest and self._is_renewed(lease):
                continue
            self.number = number + 1
            content = self._content(self._duration_s)
            if not self._run.create(layout.lease(self.number), content):
                time.sleep(_MOMENT_S)  # for the first lease of the attempt that was faster
                continue
            if highest_number(self._run.sizes(layout.LEASES)) > self.number:
                continue
            if not self._run.replace(layout.LEASE, content, tag):
                self._renew(self._duration_s)
            self.offset_s = self._offset(self._run.read_stored(layout.LEASE))
            for folder in {key.rpartition("/")[0] for key in keys} - {layout.LEASES}:
                self._run.remove(folder)
            return [key for key in keys if key.startswith(f"{layout.steps_at_work(self.number)}/")]
        raise BusyError(f"other attempts at {self._run.uri} begin at this moment; run the same command again")

    def _owner_of(self, number: int) -> str:
        content = self._run.read(layout.lease(number))
        with suppress(SpinError):
            return str(parse_json(content or b"", self._run.uri_of(layout.lease(number))).get("owner", ""))
        return ""

    def _offset(self, stored: Stored | None) -> float:
        now = stored.now if stored and stored.now is not None else self._run.now()
        offset_s = 0.0 if now is None else now - time.time()
        return offset_s if abs(offset_s) > _OFFSET_S else 0.0

    def _is_renewed(self, lease: Lease | None) -> bool:
        """Wait a moment for an attempt that has a number but no lease yet; whether it wrote one."""
        time.sleep(_MOMENT_S)
        now = read_lease(self._run)
        return now is not None and (lease is None or (now.owner, now.number) != (lease.owner, lease.number))

    def _register(self, keys: list[str]) -> tuple[int, str]:
        """Store that this step is at work, in the place of its earlier tries; returns which try it is, and the key."""
        before = tries(keys, self.number, self._label)
        tried = max((int(AT_WORK.fullmatch(key)[3]) for key in before), default=0) + 1  # type: ignore[index]
        folder = layout.steps_at_work(self.number)
        own_key = f"{folder}/{self._label}.{tried:04d}-{uuid.uuid4().hex[:8]}.json"
        self._run.write(own_key, json_bytes(_this_process()))
        for key in before:
            self._run.remove(key)
        if before:
            self._run.remove(f"{folder}/{_ENDING}")
        return tried, own_key

    def _others_at_work(self) -> bool:
        """Whether other steps of the attempt are at work, as far as can be seen from here."""
        keys = [key for key in self._run.sizes(layout.steps_at_work(self.number)) if AT_WORK.fullmatch(key)]
        return any(self._is_at_work(key) for key in keys if key != self._own_key)

    def _is_at_work(self, key: str) -> bool:
        content = self._run.read(key)
        if content is None:
            return False
        with suppress(SpinError):
            process = parse_json(content, self._run.uri_of(key))
            if process.get("host") == this_host() and process.get("namespace") == pid_namespace():
                return is_alive(str(process.get("process")))
        return True

    def _keep_renewing(self) -> None:
        while not self._ended.wait(self._duration_s / 4):
            try:
                self.claim()
            except BusyError as error:
                logger.error("this attempt has lost its lease: %s", error)
                return
            except (SpinError, OSError) as error:
                logger.warning("the lease could not be renewed: %s", error)

    def _renew(self, duration_s: float) -> None:
        for _ in range(_TRIES):
            lease, stored = read_stored_lease(self._run)
            if lease and lease.owner != self.owner:
                if lease.number > self.number or (not lease.number and lease.remaining_s):
                    raise taken_over(self._run, self.owner, lease)
                logger.warning("a late write of attempt %s, which has lost the run, is replaced", lease.owner)
            if self._run.replace(layout.LEASE, self._content(duration_s), stored.tag if stored else None):
                return

    def _content(self, duration_s: float) -> bytes:
        process = {**_this_process(), "process": identity(int(os.environ.get(RUNNER, os.getpid())))}
        lease = Lease(
            owner=self.owner,
            number=self.number,
            renewed_at=time.time(),
            uptime_s=time.monotonic(),
            duration_s=duration_s,
            **process,
        )
        return lease_bytes(lease)


def _this_process() -> dict[str, str]:
    return {"host": this_host(), "namespace": pid_namespace(), "process": identity(os.getpid())}
