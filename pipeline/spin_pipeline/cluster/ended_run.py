"""Releases the lease that a run which KFP has ended still holds, so that the next one need not wait for its expiry."""

from __future__ import annotations

import re
from typing import Any

from spin_components.errors import SpinError
from spin_components.store.addresses import scheme_of
from spin_components.store.lease import read_lease, release_ended
from spin_components.store.open import open_run
from spin_pipeline.cluster.client import Api

UNFINISHED = ("RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED", "CANCELING")
"""States of a run whose pods may still be at work."""

_RUN_ID = re.compile(r"[\w-]+")


def release_of(run: Any, run_uri: str) -> bool:
    """Release the lease of a run that has ended; True if it was still held.

    A run that succeeded has released it, and storage that cannot be reached from here leaves it to expire.

    Args:
        run: as KFP's API returns it.
        run_uri: address of its storage.
    """
    if not run.state or run.state in (*UNFINISHED, "SUCCEEDED") or scheme_of(run_uri) != "s3":
        return False
    try:
        return release_ended(open_run(run_uri), str(run.run_id))
    except SpinError:
        return False


def release_before(api: Api, run_uri: str) -> str:
    """Release the lease on a run's storage where KFP reports that the run which holds it has ended.

    Returns: KFP's id of that run; empty where nothing was released.
    """
    if scheme_of(run_uri) != "s3":
        return ""
    try:
        lease = read_lease(open_run(run_uri))
        if lease is None or not lease.remaining_s or not _RUN_ID.fullmatch(lease.owner):
            return ""
        run = api.call("looking up the run that holds the lease", api.client.runs.run_service_get_run, lease.owner)
    except SpinError:  # no storage from here, or a run of another installation
        return ""
    return lease.owner if release_of(run, run_uri) else ""
