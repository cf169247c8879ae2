"""Agreement of ranks on a save, in the store of torchrun's rendezvous: no rank waits for another in a collective.

    1. every rank stores its part, then puts the digests, or the error, under its own key;
    2. the first rank reads those of all, writes the manifest, which makes the save valid, and puts how that went;
    3. every other rank reads that.

The waits are polls of a key, with a limit of their own: `save_limit_s`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

from spin_components import errors
from spin_components.errors import EngineError, SpinError
from spin_components.store.digests import FileDigest

Outputs = dict[str, FileDigest]

_POLL_S = 0.02
_LONGEST_POLL_S = 0.5
_STORAGE_RATE = 50e6
"""Bytes a second that a slow storage takes of one machine."""


class KeyStore(Protocol):
    """What is needed of a `torch.distributed.Store`."""

    def set(self, key: str, value: str, /) -> None:
        """Put a value."""

    def get(self, key: str, /) -> bytes:
        """Return a value, waiting for it."""

    def check(self, keys: list[str], /) -> bool:
        """Whether there are values."""


def save_limit_s(num_bytes: int, limit_s: float = 0.0) -> float:
    """Seconds that ranks wait for the part of one of them to be stored, and for the manifest.

    Args:
        num_bytes: of a whole save.
        limit_s: `hardware.save_timeout`; 0 for half an hour and the time to store a save at 50 MB/s.
    """
    return limit_s or 1800 + num_bytes / _STORAGE_RATE


def open_store() -> KeyStore:
    """Connect to the store of this rendezvous, apart from the process group's, which a wait would block."""
    from torch import distributed as dist

    # a request must outlast a store that is slow to answer, no more: waits are polls
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=300),
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps the store where it restarts ranks
    prefixed: KeyStore = dist.PrefixStore(f"spin/{attempt}", store)  # type: ignore[attr-defined]
    return prefixed


class Confirmations:
    """One rank's side of the agreement.

    Args:
        store: that the ranks share; None for a single rank.
        rank: of this process.
        ranks: how many.
        limit_s: see `save_limit_s`.
        where: iteration and epoch, for errors.
    """

    def __init__(self, store: KeyStore | None, rank: int, ranks: int, *, limit_s: float, where: str) -> None:
        self._store, self._rank, self._ranks = store, rank, ranks
        self._limit_s, self._where = limit_s, where

    def share(self, name: str, value: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the first rank's value, on every rank."""
        if self._store is None:
            return value()
        if self._rank == 0:
            self._store.set(f"shared/{name}", json.dumps(value()))
        return self._read(f"shared/{name}")

    def confirm(self, save: int, write: Callable[[], Outputs], commit: Callable[[Outputs], None]) -> None:
        """Store this rank's part of a save, and return once the manifest is written.

        Args:
            save: its number, the same on every rank.
            write: stores the part.
            commit: writes the manifest of all parts; called on the first rank.

        Raises:
            SpinError: what storing a part raised on any rank, or writing the manifest; EngineError where a rank did
                not confirm in time.
        """
        key, end = f"save/{save}", f"save/{save}/end"
        own = f"{key}/{self._rank}" if self._rank else end
        try:
            outputs = write()
            if self._rank == 0:
                for rank in range(1, self._ranks):
                    part = self._read(f"{key}/{rank}", rank=rank)
                    _raise_failure(part)
                    outputs |= {name: FileDigest.model_validate(file) for name, file in part.items()}
                commit(outputs)
        except BaseException as error:
            self._put(own, _failure(error))
            raise
        self._put(own, {name: file.model_dump() for name, file in outputs.items()} if self._rank else {})
        if self._rank:
            _raise_failure(self._read(end))

    def shorten(self, limit_s: float) -> None:
        """Wait for other ranks no longer than this from now on: this rank ends with an error, and others may have."""
        self._limit_s = min(self._limit_s, limit_s)

    def _put(self, key: str, value: dict[str, Any]) -> None:
        if self._store is not None:
            self._store.set(key, json.dumps(value))

    def _read(self, key: str, *, rank: int = 0) -> dict[str, Any]:
        """Poll a value; another wait on the store must not be blocked."""
        assert self._store is not None
        began, pause_s = time.monotonic(), _POLL_S
        while not self._store.check([key]):
            if time.monotonic() - began > self._limit_s:
                raise EngineError(
                    f"{self._where}: rank {rank} did not do its part of a save within {self._limit_s:.0f} s; see its "
                    "log, and where storage is that slow raise hardware.save_timeout. The save before is kept, and the "
                    "same command resumes from it"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_POLL_S)
        value: dict[str, Any] = json.loads(self._store.get(key))
        return value


_ERROR = "error"
"""Entry of a failure; a key of a run's file has a dot or a slash."""


def _failure(error: BaseException) -> dict[str, Any]:
    known = isinstance(error, SpinError)
    message = str(error) if known else f"a save could not be stored: {type(error).__name__}: {error}"
    return {_ERROR: [type(error).__name__ if known else "EngineError", message]}


def _raise_failure(value: dict[str, Any]) -> None:
    if _ERROR in value:
        name, message = value[_ERROR]
        raise getattr(errors, name)(message)
