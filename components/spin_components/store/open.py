"""Opens a run's storage by its address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spin_components.store.addresses import S3Address, parse_address

if TYPE_CHECKING:
    pass
from spin_components.store.base import RunStore


def open_run(run_uri: str, *, deadline_s: float | None = None) -> RunStore:
    """Return the storage at an address, without creating or contacting anything.

    Args:
        run_uri: its address.
        deadline_s: seconds for which a request to object storage is retried; `SPIN_STORAGE_DEADLINE_S` by default.

    Raises:
        ConfigError: the address is invalid, or object storage is not configured.
    """
    address = parse_address(run_uri, what="run.uri")
    if isinstance(address, S3Address):
        from spin_components.store.remote import S3Run

        return S3Run(address, deadline_s)
    from spin_components.store.local import LocalRun

    return LocalRun(address)
