"""Events of a run from its beginning to its end, read from its storage alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from spin_components.errors import ConfigError
from spin_components.events import EventTail
from spin_components.store import layout
from spin_components.store.lease import read_lease, this_host
from spin_components.store.run import RunStore
from spin_pipeline.status import RunStatus, is_at_work, read_status

_GRACE_S = 5.0
PATIENCE_S = 300.0


def check_there(run: RunStore, *, wait: bool) -> None:
    """Make sure that there is a run, or wait until there is.

    Raises:
        ConfigError: there is none, and `wait` is not set.
    """
    while not run.exists(layout.ATTEMPT) and not run.sizes(layout.EVENTS):
        if not wait:
            raise ConfigError(
                f"no run at {run.uri}: it has no {layout.ATTEMPT}; check the address, or wait for it with "
                "--wait-for-start"
            )
        time.sleep(run.poll_s)


def follow(
    run: RunStore,
    show: Callable[[Sequence[dict[str, Any]]], None],
    say: Callable[[str], None],
    patience_s: float = PATIENCE_S,
) -> RunStatus:
    """Show all events that there are and those that come, until the run has ended.

    A step that failed on a cluster may be tried again, and an attempt that is silent may only wait for a machine; so
    where another machine works on the run, its end is believed after `patience_s` without a sign of life.

    Args:
        run: to read.
        show: given events in the order of their time.
        say: told in a few words how the run stands.
        patience_s: see above; on this machine it is known whether a runner is alive.

    Raises:
        StorageError: storage does not answer for minutes.
    """
    tail = EventTail(run)
    quiet_since: float | None = None
    while True:
        events = tail.new()
        if events:
            show(events)
            quiet_since = None
            say("running")
        elif is_at_work(run):
            quiet_since = None
            say("running")
        else:
            quiet_since = quiet_since or time.monotonic()
            if not run.exists(layout.ATTEMPT) and time.monotonic() - quiet_since < _GRACE_S:
                time.sleep(run.poll_s)  # prepare has begun, and not got far
                continue
            status = read_status(run.uri)
            left_s = _patience_left(run, status, patience_s, time.monotonic() - quiet_since)
            if left_s <= 0:
                show(tail.new())
                say(status.state)
                return status
            say(f"{status.state}? no sign of life, {left_s:.0f} s more")
        time.sleep(run.poll_s)


def _patience_left(run: RunStore, status: RunStatus, patience_s: float, quiet_s: float) -> float:
    """Seconds until the end of a run that nobody works on is believed."""
    if status.state == "done" or status.state == "stopped":
        return 0.0
    lease = read_lease(run)
    if lease is not None and lease.host != this_host():
        return lease.renewed_at + patience_s - time.time()
    return 0.0 if status.state == "failed" else _GRACE_S - quiet_s
