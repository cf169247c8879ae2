"""Parallel upload and download of files in parts, in bounded memory, with SHA-256 computed during the transfer."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from minio.datatypes import Part

from spin_components.errors import StorageError
from spin_components.machine import num_cores
from spin_components.store.bucket import Bucket
from spin_components.store.digests import FileDigest
from spin_components.store.stored import Guard

PART_BYTES = 16 << 20
"""Size of an upload's parts; larger for files that would have more than S3's limit of 10 000 parts."""

RANGE_BYTES = 64 << 20
"""Size of the range of one download request."""

_MAX_PARTS = 10_000
_CONNECTIONS = min(max(num_cores(), 2), 8)
"""Concurrent requests; each is limited by one core's speed of hashing or copying."""
_FILES = 3

ByteCounter = Callable[[int], None]
"""Callback that takes the number of bytes transferred since its last call."""


def _ignore(num_bytes: int) -> None:
    """Do nothing."""


class Transfers:
    """Uploads and downloads files of one bucket in parallel.

    Up to three files are transferred at a time, with as many requests as there are cores (at least 2, at most 8).
    An upload holds one part per request and one per file in memory, a download 1 MiB per request: blocks are written
    to the file at their offsets and hashed from there in order.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._parts = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="part")
        self._files = ThreadPoolExecutor(_FILES, thread_name_prefix="file")
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)

    def close(self) -> None:
        """End the threads."""
        self._files.shutdown(cancel_futures=True)
        self._parts.shutdown(cancel_futures=True)

    def upload_all(
        self, files: Mapping[Path, str], report: ByteCounter = _ignore, guard: Guard | None = None
    ) -> dict[str, FileDigest]:
        """Upload files, each to its key; returns their digests by key.

        Args:
            files: keys by path.
            report: called with the bytes sent.
            guard: called before a file becomes visible, at most once a second; an upload whose guard raises is
                aborted.
        """
        guard = _once_a_second(guard) if guard else None
        digests = self._run_all({key: partial(self.upload, path, key, report, guard) for path, key in files.items()})
        return {key: digests[key] for key in files.values()}

    def download_all(
        self, files: Mapping[str, tuple[Path, int]], report: ByteCounter = _ignore
    ) -> dict[str, FileDigest]:
        """Download objects, by key to a path of known size in bytes; returns the digests of the received content."""
        return self._run_all(
            {key: partial(self.download, key, path, size, report) for key, (path, size) in files.items()}
        )

    def _run_all(self, jobs: Mapping[str, Callable[[], FileDigest]]) -> dict[str, FileDigest]:
        futures = {key: self._files.submit(job) for key, job in jobs.items()}
        try:
            return {key: future.result() for key, future in futures.items()}
        finally:
            _settle(futures.values())

    def upload(self, path: Path, key: str, report: ByteCounter = _ignore, guard: Guard | None = None) -> FileDigest:
        """Upload one file atomically; returns its digest."""
        num_bytes = path.stat().st_size
        if num_bytes <= PART_BYTES:
            content = path.read_bytes()
            self._bucket.put(key, content, guard=guard)
            report(num_bytes)
            return FileDigest(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        upload = self._bucket.begin_upload(key)
        try:
            parts, digest = self._upload_parts(path, key, upload, _part_size(num_bytes), report)
            if digest.num_bytes != num_bytes:
                raise StorageError(f"{path} changed from {num_bytes} to {digest.num_bytes} bytes while it was uploaded")
            self._bucket.complete_upload(key, upload, parts, num_bytes, guard)
        except BaseException:
            self._abort(key, upload)
            raise
        return digest

    def _upload_parts(
        self, path: Path, key: str, upload: str, size: int, report: ByteCounter
    ) -> tuple[list[Part], FileDigest]:
        sha256, num_bytes = hashlib.sha256(), 0
        futures: list[Future[Part]] = []
        failed = threading.Event()

        def send(number: int, content: bytes) -> Part:
            try:
                part = self._bucket.put_part(key, upload, number, content)
                report(len(content))
                return part
            except BaseException:
                failed.set()
                raise
            finally:
                self._slots.release()

        try:
            with path.open("rb") as file:
                while not failed.is_set() and (content := file.read(size)):
                    self._slots.acquire()
                    futures.append(self._parts.submit(send, len(futures) + 1, content))
                    sha256.update(content)
                    num_bytes += len(content)
            parts = [future.result() for future in futures]
        finally:
            for future in futures:
                if future.cancel():
                    self._slots.release()
            _settle(futures)  # a part that is still being sent when the upload is aborted would be left behind
        return parts, FileDigest(num_bytes=num_bytes, sha256=sha256.hexdigest())

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._bucket.abort_upload(key, upload)
        except Exception:  # the error that led here is raised instead; `sweep` aborts the upload later
            return

    def download(
        self, key: str, path: Path, num_bytes: int, report: ByteCounter = _ignore, *, etag: str = ""
    ) -> FileDigest:
        """Download one object to a path; returns the digest of what was received.

        Raises:
            StorageError: the object was replaced meanwhile by one with another ETag, where one is given.
        """
        size, sha256 = RANGE_BYTES, hashlib.sha256()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        futures: list[Future[None]] = []

        def receive(offset: int) -> None:
            length = min(size, num_bytes - offset)
            self._bucket.get_part(
                key, offset, length, lambda position, block: _write(descriptor, block, position), etag
            )
            report(length)

        try:
            os.truncate(descriptor, num_bytes)
            futures = [self._parts.submit(receive, offset) for offset in range(0, num_bytes, size)]
            for number, future in enumerate(futures):
                future.result()
                _hash_range(sha256, descriptor, number * size, min(size, num_bytes - number * size))
        finally:
            _settle(futures)  # no thread may write to the closed descriptor
            os.close(descriptor)
        return FileDigest(num_bytes=num_bytes, sha256=sha256.hexdigest())


def _once_a_second(guard: Guard) -> Guard:
    """Wrap a guard so that for one second after it has allowed a write it is not called again."""
    allowed = -math.inf

    def guard_if_due() -> None:
        nonlocal allowed
        now = time.monotonic()  # goes on while the process is stopped
        if now - allowed >= 1.0:
            guard()
            allowed = now

    return guard_if_due


def _part_size(num_bytes: int) -> int:
    return max(PART_BYTES, -(-num_bytes // _MAX_PARTS))


def _settle(futures: Iterable[Future[Any]]) -> None:
    """Cancel pending futures and wait for the running ones."""
    running = [future for future in futures if not future.cancel()]
    wait(running)


def _hash_range(sha256: hashlib._Hash, descriptor: int, offset: int, num_bytes: int) -> None:
    """Update a hash with a range of a file, through a memory map of its cached pages."""
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with (
        mmap.mmap(descriptor, offset + num_bytes - start, prot=mmap.PROT_READ, offset=start) as pages,
        memoryview(pages) as view,
        view[offset - start :] as content,
    ):
        sha256.update(content)


def _write(descriptor: int, block: bytes, position: int) -> None:
    """Write a whole block at an offset of a file."""
    while block:
        written = os.pwrite(descriptor, block, position)
        block, position = block[written:], position + written
