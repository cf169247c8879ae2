"""Ranks agree on a save through a store that they share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from torch import distributed as dist

from spin_components.errors import BusyError, EngineError, StorageError
from spin_components.store.digests import FileDigest
from spin_components.training.confirmations import Confirmations, Outputs, save_limit_s

DIGEST = FileDigest(num_bytes=1, sha256="0" * 64)


def make_store() -> Any:
    return dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False
    )


class Ranks:
    """Threads, one a rank, with one store."""

    def __init__(self, number: int, limit_s: float = 60.0) -> None:
        self._store = make_store()  # the server, which its connections need
        clones = [self._store.clone() for _ in range(number)]
        self.sides = [Confirmations(clones[rank], rank, number, limit_s=limit_s, where="t") for rank in range(number)]
        self.committed: list[Outputs] = []

    def save(self, number: int, write: Callable[[int], Outputs]) -> list[Future[None]]:
        with ThreadPoolExecutor(len(self.sides)) as pool:
            return [
                pool.submit(side.confirm, number, lambda rank=rank: write(rank), self.committed.append)  # type: ignore[misc]
                for rank, side in enumerate(self.sides)
            ]


def test_the_manifest_is_written_once_with_the_parts_of_all() -> None:
    ranks = Ranks(3)
    for number in (1, 2):
        for future in ranks.save(number, lambda rank, number=number: {f"{number}/{rank}": DIGEST}):  # type: ignore[misc]
            future.result()
    assert [set(outputs) for outputs in ranks.committed] == [
        {f"{number}/{rank}" for rank in range(3)} for number in (1, 2)
    ]


def test_the_manifest_waits_for_the_last_part_and_every_rank_for_the_manifest() -> None:
    ranks, is_stored = Ranks(3), threading.Event()
    ended: list[int] = []

    def write(rank: int) -> Outputs:
        if rank == 2:
            is_stored.wait()
        ended.append(rank)
        return {str(rank): DIGEST}

    outer = ThreadPoolExecutor(1)
    futures = outer.submit(ranks.save, 1, write)
    while len(ended) < 2:
        time.sleep(0.01)
    assert not ranks.committed
    assert not futures.done()
    is_stored.set()
    assert [future.exception() for future in futures.result()] == [None] * 3
    assert len(ranks.committed) == 1
    outer.shutdown()


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_rank_is_that_of_all_and_no_manifest_is_written(failing: int) -> None:
    ranks = Ranks(3)

    def write(rank: int) -> Outputs:
        if rank == failing:
            raise BusyError("the run was taken over")
        return {}

    for future in ranks.save(1, write):
        assert isinstance(future.exception(), BusyError)
        assert "taken over" in str(future.exception())
    assert ranks.committed == []


def test_an_unknown_error_is_named_on_the_other_ranks() -> None:
    ranks = Ranks(2)

    def write(rank: int) -> Outputs:
        if rank == 1:
            raise OSError(28, "No space left on device")
        return {}

    first, second = (future.exception() for future in ranks.save(1, write))
    assert isinstance(first, EngineError)
    assert "OSError: [Errno 28] No space left on device" in str(first)
    assert isinstance(second, OSError)


def test_a_manifest_that_cannot_be_written_is_an_error_of_every_rank() -> None:
    ranks = Ranks(2)

    def refuse(outputs: Outputs) -> None:
        raise StorageError("the storage is gone")

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(side.confirm, 1, dict, refuse) for side in ranks.sides]
    assert {type(future.exception()) for future in futures} == {StorageError}


def test_a_rank_that_does_not_confirm_is_named_after_the_limit() -> None:
    ranks = Ranks(3, limit_s=0.1)
    with pytest.raises(EngineError, match=r"t: rank 1 did not do its part of a save within 0 s"):
        ranks.sides[0].confirm(1, dict, ranks.committed.append)
    assert ranks.committed == []


def test_a_single_rank_needs_no_store() -> None:
    committed: list[Outputs] = []
    alone = Confirmations(None, 0, 1, limit_s=1.0, where="t")
    alone.confirm(1, lambda: {"a": DIGEST}, committed.append)
    assert committed == [{"a": DIGEST}]
    assert alone.share("x", lambda: {"b": 1}) == {"b": 1}


def test_the_limit_grows_with_the_size_of_a_save() -> None:
    assert save_limit_s(0) == 1800
    assert save_limit_s(840 * 10**9) == 1800 + 16800  # 840 GB, of 70 billion parameters, at 50 MB/s
    assert save_limit_s(840 * 10**9, 7.0) == 7.0
