"""Follows the events of a run from its start to its end, reading its storage only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from spin_components.errors import ConfigError
from spin_components.record.events import EventTail
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.lease import read_lease
from spin_pipeline.runs.status import RunStatus, is_at_work, read_status

_GRACE_S = 5.0
PATIENCE_S = 300.0


def check_there(run: RunStore, *, wait: bool) -> None:
    """Check that a run exists, or wait until it does.

    Raises:
        ConfigError: it does not exist and `wait` is not set.
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
    set_state: Callable[[str], None],
    patience_s: float = PATIENCE_S,
) -> RunStatus:
    """Pass on all events of a run, past and new, until it has ended; returns its final status.

    On a cluster, a failed step may be retried, and an attempt without events may be waiting for a node. So a run on
    another machine counts as ended only after `patience_s` without events and lease renewals.

    Args:
        run: the run to read.
        show: called with new events, ordered by time.
        set_state: called with the state of the run in a few words.
        patience_s: see above; not used for a run on this machine, where the lock shows whether a process is alive.

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
            set_state("running")
        elif is_at_work(run):
            quiet_since = None
            set_state("running")
        else:
            quiet_since = quiet_since or time.monotonic()
            if not run.exists(layout.ATTEMPT) and time.monotonic() - quiet_since < _GRACE_S:
                time.sleep(run.poll_s)  # prepare has started and not written the attempt yet
                continue
            status = read_status(run.uri)
            left_s = _patience_left(run, status, patience_s, time.monotonic() - quiet_since)
            if left_s <= 0:
                show(tail.new())
                set_state(status.state)
                return status
            set_state(f"{status.state}? no events; waiting {left_s:.0f} s more")
        time.sleep(run.poll_s)


def _patience_left(run: RunStore, status: RunStatus, patience_s: float, quiet_s: float) -> float:
    """Seconds until a run without a live process counts as ended; 0 or less if it does already."""
    if status.state == "done" or status.state == "stopped":
        return 0.0
    lease = read_lease(run)
    if lease is not None and not lease.is_local:
        return patience_s - lease.age_s
    return 0.0 if status.state == "failed" else _GRACE_S - quiet_s
