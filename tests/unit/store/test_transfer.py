from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from minio.datatypes import Part

from spin_components.errors import StorageAccessError, StorageError
from spin_components.store import transfer
from spin_components.store.bucket import Bucket
from spin_components.store.digests import FileDigest, digest_file
from spin_components.store.transfer import Transfers
from support.loopback import Loopback, Script, listening, refusal, reply, times
from support.s3_server import BUCKET, S3Server

PART = 64 << 10
"""Size in bytes of an upload part and of a download range in these tests; the test server accepts parts of any size."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PART_BYTES", PART)
    monkeypatch.setattr(transfer, "RANGE_BYTES", PART)


@pytest.fixture
def bucket(s3: S3Server) -> Bucket:
    return Bucket(BUCKET)


@pytest.fixture
def transfers(bucket: Bucket) -> Iterator[Transfers]:
    transfers = Transfers(bucket)
    yield transfers
    transfers.close()


def written(path: Path, num_bytes: int) -> Path:
    """Write a file whose parts all differ."""
    blocks = (hashlib.sha256(str(number).encode()).digest() for number in range(num_bytes // 32 + 1))
    path.write_bytes(b"".join(blocks)[:num_bytes])
    return path


@pytest.mark.parametrize(
    ("num_bytes", "num_parts"),
    [(0, 0), (1, 0), (PART - 1, 0), (PART, 0), (PART + 1, 2), (2 * PART, 2), (20 * PART + 7, 21)],
)
def test_files_of_all_sizes_round_trip_with_their_digest(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int, num_parts: int
) -> None:
    path = written(tmp_path / "up", num_bytes)
    key = f"sizes/{num_bytes}"
    with listening(lambda request: None, s3.port) as server:
        monkeypatch.setenv("S3_ENDPOINT", server.endpoint)
        transfers = Transfers(Bucket(BUCKET))
        up = transfers.upload(path, key)
        down = transfers.download(key, tmp_path / "down", num_bytes)
        transfers.close()
        assert sum("partNumber=" in request for request in server.requests) == num_parts
    assert up == down == digest_file(path)
    assert up.num_bytes == num_bytes
    assert (tmp_path / "down").read_bytes() == path.read_bytes() == s3.path(key).read_bytes()


def test_many_files_are_transferred_each_to_its_key(transfers: Transfers, tmp_path: Path, s3: S3Server) -> None:
    paths = {written(tmp_path / f"{number}", number * PART // 2): f"many/{number}" for number in range(12)}
    digests = transfers.upload_all(paths)
    assert digests == {key: digest_file(path) for path, key in paths.items()}
    targets = {key: (tmp_path / f"down-{path.name}", digests[key].num_bytes) for path, key in paths.items()}
    assert transfers.download_all(targets) == digests
    assert all(digest_file(targets[key][0]) == digests[key] for key in digests)


def test_transferred_bytes_are_reported(transfers: Transfers, tmp_path: Path) -> None:
    path = written(tmp_path / "up", 5 * PART + 3)
    done: list[int] = []
    transfers.upload_all({path: "reported"}, done.append)
    assert sum(done) == 5 * PART + 3
    done.clear()
    transfers.download("reported", tmp_path / "down", 5 * PART + 3, done.append)
    assert sum(done) == 5 * PART + 3


def test_an_existing_file_is_overwritten(transfers: Transfers, tmp_path: Path) -> None:
    path = written(tmp_path / "up", PART + 1)
    transfers.upload(path, "overwritten")
    (tmp_path / "down").write_bytes(b"longer" * PART)
    assert transfers.download("overwritten", tmp_path / "down", PART + 1) == digest_file(tmp_path / "down")


def test_the_number_of_parts_is_within_s3s_limit() -> None:
    # 10 000 parts of 64 KiB, and one byte: each part is a byte larger
    assert transfer._part_size(10_000 * PART) == PART
    assert transfer._part_size(10_000 * PART + 1) == PART + 1
    assert -(-(10_000 * PART + 1) // (PART + 1)) <= 10_000


def uploading(s3: S3Server, monkeypatch: pytest.MonkeyPatch, path: Path, key: str, script: Script) -> Loopback:
    """Upload a file through a scripted server; returns the server, which has stopped."""
    with listening(script, s3.port) as server:
        monkeypatch.setenv("S3_ENDPOINT", server.endpoint)
        transfers = Transfers(Bucket(BUCKET))
        try:
            assert transfers.upload(path, key) == digest_file(path)
        finally:
            transfers.close()
    return server


def test_an_object_is_invisible_until_the_upload_is_complete(
    bucket: Bucket, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes | None] = []

    def look(request: str) -> None:
        if "partNumber=" in request or "?uploadId" in request:
            seen.append(bucket.get("hidden"))

    uploading(s3, monkeypatch, written(tmp_path / "up", 3 * PART), "hidden", look)
    assert seen == [None] * 4  # three parts, and the end
    assert bucket.get("hidden") == (tmp_path / "up").read_bytes()


@pytest.mark.parametrize("answer", [refusal(503, "SlowDown"), b""], ids=["slow", "reset"])
def test_a_failed_part_is_sent_again(
    bucket: Bucket, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    path = written(tmp_path / "up", 3 * PART)
    failing = times(2, "PUT", answer)
    server = uploading(s3, monkeypatch, path, "resent", failing)
    assert server.count("PUT") == 5  # three parts, two of them twice
    assert bucket.get("resent") == path.read_bytes()
    assert bucket.uploads("resent") == []


def test_an_upload_whose_last_response_is_lost_is_complete(
    bucket: Bucket, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lost = written(tmp_path / "up", 3 * PART), list[str]()

    def lose(request: str) -> bytes | None:
        if not request.startswith("POST") or "?uploadId" not in request or lost:
            return None
        # the server has completed the upload, but its response is lost
        lost.append(request)
        (upload,) = bucket.uploads("lost")
        parts = [Part(number + 1, hashlib.md5(part).hexdigest()) for number, part in enumerate(split(path))]
        bucket.complete_upload("lost", upload[1], parts, 3 * PART)
        return b""

    uploading(s3, monkeypatch, path, "lost", lose)
    assert len(lost) == 1
    assert bucket.get("lost") == path.read_bytes()


def split(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[start : start + PART] for start in range(0, len(content), PART)]


def test_a_completion_with_an_error_in_a_200_response_is_retried(
    bucket: Bucket, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # S3 sends status 200 for CompleteMultipartUpload early, and a later error in the body
    body = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>Try again</Message></Error>"
    path, left = written(tmp_path / "up", 3 * PART), [reply(200, body)]

    def fail_once(request: str) -> bytes | None:
        return left.pop() if left and request.startswith("POST") and "?uploadId" in request else None

    uploading(s3, monkeypatch, path, "late-error", fail_once)
    assert left == []
    assert bucket.get("late-error") == path.read_bytes()


@pytest.mark.usefixtures("retry_clock")
@pytest.mark.parametrize("code", ["AccessDenied", "SlowDown"])
def test_a_failed_upload_leaves_no_object_and_no_parts(
    bucket: Bucket, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    path = written(tmp_path / "up", 20 * PART)
    status, kind = (403, StorageAccessError) if code == "AccessDenied" else (503, StorageError)
    script: Script = lambda request: refusal(status, code) if "partNumber=7&" in request else None  # noqa: E731
    with pytest.raises(kind, match=rf"PUT s3://{BUCKET}/failed"):
        uploading(s3, monkeypatch, path, "failed", script)
    assert bucket.get("failed") is None
    assert bucket.uploads("failed") == []


def test_a_file_that_changes_during_its_upload_is_not_stored(
    bucket: Bucket, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "up", 20 * PART)

    def cut(request: str) -> None:
        if "?uploads" in request:
            os.truncate(path, 10 * PART)

    with pytest.raises(StorageError, match=rf"up changed from {20 * PART} to {10 * PART} bytes while it was uploaded"):
        uploading(s3, monkeypatch, path, "changing", cut)
    assert (bucket.get("changing"), bucket.uploads("changing")) == (None, [])


def test_one_failed_file_fails_the_transfer_and_the_next_one_works(
    transfers: Transfers, tmp_path: Path, bucket: Bucket
) -> None:
    for name in ("a", "b"):
        bucket.put(f"some/{name}", b"abc")
    wanted = {f"some/{name}": (tmp_path / name, 3) for name in ("a", "absent", "b")}
    with pytest.raises(StorageAccessError, match=rf"GET s3://{BUCKET}/some/absent .*NoSuchKey"):
        transfers.download_all(wanted)
    del wanted["some/absent"]
    abc = FileDigest(num_bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())
    assert transfers.download_all(wanted) == {"some/a": abc, "some/b": abc}


def test_truncated_parts_are_downloaded_again(
    bucket: Bucket, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "up", 10 * PART)
    bucket.put("cut", path.read_bytes())
    with listening(times(3, "GET", reply(206, b"\0" * 1000, length=PART)), s3.port) as server:
        monkeypatch.setenv("S3_ENDPOINT", server.endpoint)
        transfers = Transfers(Bucket(BUCKET))
        assert transfers.download("cut", tmp_path / "down", 10 * PART) == digest_file(path)
        transfers.close()
        assert server.count("GET") == 13
    assert digest_file(tmp_path / "down") == digest_file(path)


MEASURE = """
import os, resource, sys
from pathlib import Path
from spin_components.store.bucket import Bucket
from spin_components.store.transfer import PART_BYTES, RANGE_BYTES, Transfers

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

bucket, folder, size = Bucket(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4])
transfers = Transfers(bucket)
bucket.put("small", b"")
before = peak()
if sys.argv[3] == "up":
    for name in "abc":
        (folder / name).touch()
        os.truncate(folder / name, size)
    transfers.upload_all({folder / name: f"large/{name}" for name in "abc"})
else:
    transfers.download_all({f"large/{name}": (folder / name, size) for name in "abc"})
print((peak() - before) / (PART_BYTES if sys.argv[3] == "up" else RANGE_BYTES))
"""


def test_memory_depends_on_parts_not_on_files(s3: S3Server, tmp_path: Path) -> None:
    # three files of 96 MiB: 18 parts that are sent, 6 ranges that are received, the files' pages counted
    command = [sys.executable, "-c", MEASURE, BUCKET, str(tmp_path)]
    peaks = {}
    for way in ("up", "down"):
        done = subprocess.run([*command, way, str(96 << 20)], capture_output=True, text=True, check=True)
        peaks[way] = float(done.stdout)
    for name in "abc":
        s3.path(f"large/{name}").unlink()
    assert peaks["up"] < 7 + 1  # parts: the documented bound, and one for the interpreter
    assert peaks["down"] < 3 + 0.5
