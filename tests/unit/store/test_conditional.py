"""Conditional writes, on a server that ignores conditions and on one that checks them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from faults.proxy import Proxy
from spin_components.store import conditional
from spin_components.store.bucket import Bucket
from spin_components.store.conditional import ConditionalWrites
from support.s3_server import BUCKET, S3Server

_NUMBERS = itertools.count()


@pytest.fixture(params=["ignores conditions", "checks conditions"])
def bucket(request: pytest.FixtureRequest, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    proxy = Proxy(s3.port, s3.folder if request.param == "checks conditions" else None)
    monkeypatch.setenv("S3_ENDPOINT", proxy.endpoint)
    yield Bucket(BUCKET)
    proxy.close()


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"conditional/{next(_NUMBERS)}/object.json"


def test_one_of_several_concurrent_creators_succeeds(bucket: Bucket, key: str) -> None:
    writes = ConditionalWrites(bucket)
    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(lambda number: writes.create(key, str(number).encode()), range(4)))
    assert sorted(created) == [False, False, False, True]
    assert bucket.get(key) == str(created.index(True)).encode()
    assert [info.key for info in bucket.objects(key)] == [key], "no ticket is left"


def test_what_exists_is_not_created(bucket: Bucket, key: str) -> None:
    bucket.put(key, b"first")
    assert not ConditionalWrites(bucket).create(key, b"second")
    assert bucket.get(key) == b"first"


def test_the_ticket_of_a_process_that_died_is_waited_for_and_then_ignored(
    bucket: Bucket, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditional, "_PATIENCE_S", 1.0)
    bucket.put(f"{key}-{'0' * 32}", b"of a dead process")
    assert ConditionalWrites(bucket).create(key, b"of a living one")
    assert bucket.get(key) == b"of a living one"


def test_an_object_is_replaced_under_its_tag(bucket: Bucket, key: str) -> None:
    writes = ConditionalWrites(bucket)
    assert writes.replace(key, b"1", None)
    info = bucket.stat(key)
    assert info
    assert writes.replace(key, b"2", info.etag)
    assert bucket.get(key) == b"2"


@pytest.mark.parametrize("bucket", ["checks conditions"], indirect=True)
def test_an_object_that_has_changed_is_not_replaced(bucket: Bucket, key: str) -> None:
    writes = ConditionalWrites(bucket)
    assert not writes.replace(key, b"2", "0" * 32), "it is gone"
    bucket.put(key, b"1")
    assert not writes.replace(key, b"2", None), "it is there"
    assert not writes.replace(key, b"2", "0" * 32), "it is another"
    assert bucket.get(key) == b"1"
    assert writes.replace(key, b"1", "0" * 32), "the answer to a successful request was lost"
