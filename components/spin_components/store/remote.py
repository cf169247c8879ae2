"""Storage of a run in a bucket; files are uploaded once complete, and downloaded through the local cache."""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from spin_components.errors import SpinError, StorageAccessError, StorageError
from spin_components.store.addresses import S3Address
from spin_components.store.base import RunStore, remove
from spin_components.store.bucket import Bucket
from spin_components.store.cache import FileCache, View, cache_folder, cache_limit
from spin_components.store.conditional import ConditionalWrites
from spin_components.store.digests import FileDigest, damaged
from spin_components.store.keys import check_key, flaw_of
from spin_components.store.ownership import folders_of_other_runs, is_own, is_staging
from spin_components.store.stored import Guard, Stored
from spin_components.store.transfer import Transfers

logger = logging.getLogger(__name__)

_PROBE = ".probe-"
_CHUNK_BYTES = 256 << 10
_FLUSH_S = 2.0
_EVENTS_DEADLINE_S = 20.0
_QUIET_BYTES = 32 << 20


class S3Run(RunStore):
    """Storage of a run below one prefix of a bucket.

    A file is one object, which S3 makes visible atomically. A folder is several objects, which are valid only once a
    manifest lists them. Uploaded files stay in the local cache for the next step on this machine.
    """

    poll_s = 2.0

    def __init__(self, address: S3Address, deadline_s: float | None = None) -> None:
        self.uri = str(address)
        self.scratch = cache_folder() / "runs" / hashlib.sha256(self.uri.encode()).hexdigest()[:16]
        self._prefix = f"{address.key}/" if address.key else ""
        self._bucket = Bucket(address.bucket, deadline_s=deadline_s)
        self._view: View | None = None

    @cached_property
    def _cache(self) -> FileCache:
        return FileCache(cache_folder(), cache_limit())

    @cached_property
    def _transfers(self) -> Transfers:
        return Transfers(self._bucket)

    def _object(self, key: str) -> str:
        """Name in the bucket of a key of the run."""
        return self._prefix + check_key(key, where=self.uri)

    def exists(self, key: str) -> bool:
        return self._bucket.stat(self._object(key)) is not None

    def sizes(self, prefix: str) -> dict[str, int]:
        start = f"{self._object(prefix)}/" if prefix else self._prefix
        objects = {info.key.removeprefix(self._prefix): info.num_bytes for info in self._bucket.objects(start)}
        return {key: num_bytes for key, num_bytes in objects.items() if not flaw_of(key)}

    def read(self, key: str, offset: int = 0) -> bytes | None:
        return self._bucket.get(self._object(key), offset)

    def write(self, key: str, content: bytes) -> None:
        self._bucket.put(self._object(key), content)

    def read_stored(self, key: str) -> Stored | None:
        return self._bucket.read(self._object(key))

    def tag_of(self, key: str) -> str | None:
        info = self._bucket.stat(self._object(key))
        return info.etag if info else None

    def create(self, key: str, content: bytes) -> bool:
        return ConditionalWrites(self._bucket).create(self._object(key), content)

    def replace(self, key: str, content: bytes, tag: str | None, guard: Guard | None = None) -> bool:
        return ConditionalWrites(self._bucket).replace(self._object(key), content, tag, guard)

    def now(self) -> float | None:
        return None  # comes with every answer: `Stored.now`

    def fetch(self, files: Mapping[str, FileDigest], *, what: str, made_by: str = "") -> Path:
        if self._view is None:
            self._view = self._cache.view()
        for _ in range(3):  # another process may trim the cache between a download and its link
            missing = self._view.missing({check_key(key, where=self.uri): file for key, file in files.items()})
            if not missing:
                return self._view.folder
            uncached = {key: digest for key, digest in missing.items() if not self._cache.has(digest)}
            self._download(self._view, uncached, what, made_by)
            for key, digest in missing.items():
                if not self._cache.link(digest, self._view.link_path(key, digest)):
                    self._view.forget(key)
            self._cache.trim()
        raise StorageError(
            f"files of {self.uri} are evicted from the cache {cache_folder()} before use; raise SPIN_CACHE_GIB"
        )

    def _download(self, view: View, files: Mapping[str, FileDigest], what: str, made_by: str) -> None:
        """Download files into the cache; files that arrive with a wrong digest are downloaded once more."""
        remedy = f"delete {self.uri_of(made_by)} to have its step run again" if made_by else ""
        pending = dict({digest.sha256: (key, digest) for key, digest in files.items()}.values())
        for key, digest in pending.items():
            info = self._bucket.stat(self._object(key))
            if info is None:
                raise damaged(self.uri_of(key), "is missing", f"{digest.num_bytes} bytes", what=what, remedy=remedy)
            if info.num_bytes != digest.num_bytes:
                actual = f"has {info.num_bytes} bytes"
                raise damaged(self.uri_of(key), actual, str(digest.num_bytes), what=what, remedy=remedy)
        mismatched: dict[str, FileDigest] = {}
        for _ in range(2):
            mismatched = self._download_once(view, pending, what)
            pending = {key: pending[key] for key in mismatched}
        for key, received in mismatched.items():
            actual, expected = f"has SHA-256 {received.sha256[:12]}…", f"{pending[key].sha256[:12]}…"
            raise damaged(self.uri_of(key), actual, expected, what=what, remedy=remedy)

    def _download_once(self, view: View, files: Mapping[str, FileDigest], what: str) -> dict[str, FileDigest]:
        """Download files into the cache; returns the received digests of those that differ from the expected ones."""
        targets = {key: view.free_path() for key in files}
        with self._reporting(f"fetching {what}", sum(digest.num_bytes for digest in files.values())) as report:
            sizes = {self._prefix + key: (path, files[key].num_bytes) for key, path in targets.items()}
            received = self._transfers.download_all(sizes, report)
        mismatched = {}
        for key, digest in files.items():
            actual = received[self._prefix + key]
            if actual.sha256 == digest.sha256:
                self._cache.add(targets[key], digest)
            else:
                targets[key].unlink()
                mismatched[key] = actual
        return mismatched

    def remove(self, key: str) -> int:
        path = self._object(key)
        objects = [info for info in self._bucket.objects(path) if info.key == path or info.key.startswith(f"{path}/")]
        self._bucket.delete(info.key for info in objects)
        return sum(info.num_bytes for info in objects)

    def sweep(self, *, dry_run: bool = False) -> Sequence[str]:
        if self.guard is not None:
            self.guard()
        uploads = self._own_uploads()
        for key, upload in uploads:
            if not dry_run:
                logger.info("aborting the unfinished upload of s3://%s/%s", self._bucket.name, key)
                self._bucket.abort_upload(key, upload)
        start = f"{self._prefix}{_PROBE}"
        found = (info.key for info in self._bucket.objects(start))
        probes = [key for key in found if re.fullmatch(r"[0-9a-f]{32}", key.removeprefix(start))]
        scratch = sorted(self.scratch.iterdir()) if self.scratch.is_dir() else []
        partial = [path for path in scratch if is_staging(path.name)]
        if not dry_run:
            self._bucket.delete(probes)
            for path in partial:
                remove(path)
        names = [key.removeprefix(self._prefix) for key in (*(key for key, _ in uploads), *probes)]
        return names + [path.name for path in partial]

    def _own_uploads(self) -> list[tuple[str, str]]:
        """Object and id of the unfinished multipart uploads that steps of this run began."""
        uploads = self._bucket.uploads(self._prefix)
        own = [(key, upload) for key, upload in uploads if is_own(key.removeprefix(self._prefix))]
        others = folders_of_other_runs(self.sizes("")) if own else ()
        return [(key, upload) for key, upload in own if not key.removeprefix(self._prefix).startswith(others)]

    def probe(self) -> None:
        bucket = self._bucket.with_short_deadline()
        key, content = f"{self._prefix}{_PROBE}{uuid.uuid4().hex}", socket.gethostname().encode()
        try:
            bucket.put(key, content)
            received = bucket.get(key)
            bucket.delete([key])
        except StorageError as error:
            raise StorageAccessError(str(error)) from error
        if received != content:
            raise StorageAccessError(
                f"{self.uri} returns other bytes than were written; check proxies between here and {bucket.endpoint}"
            )

    def appender(self, key: str) -> ChunkAppender:
        return ChunkAppender(Bucket(self._bucket.name, deadline_s=_EVENTS_DEADLINE_S), self._object(key))

    @contextmanager
    def _staging(self, key: str) -> Iterator[Path]:
        self.scratch.mkdir(parents=True, exist_ok=True)
        staging = self.scratch / f".{Path(key).name}.{uuid.uuid4().hex[:8]}.part"
        try:
            yield staging
        finally:
            remove(staging)

    def _publish(self, path: Path, key: str) -> dict[str, FileDigest]:
        if path.is_dir():
            names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
            files = {path / name: f"{key}/{name}" for name in names}
        else:
            files = {path: key}
        total = sum(file.stat().st_size for file in files)
        with self._reporting(f"storing {key}", total) as report:
            uploaded = self._transfers.upload_all(
                {file: self._object(name) for file, name in files.items()}, report, self.guard
            )
        outputs = {name: uploaded[self._prefix + name] for name in files.values()}
        if path.is_dir():
            self._bucket.delete(self._prefix + old for old in self.sizes(key) if old not in outputs)
        for file, name in files.items():
            self._cache.add(file, outputs[name])
        self._cache.trim()
        return outputs

    @contextmanager
    def _reporting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        lock, done = threading.Lock(), 0

        def report(num_bytes: int) -> None:
            nonlocal done
            with lock:
                done += num_bytes
                if self.on_progress and total > _QUIET_BYTES:
                    self.on_progress(what, done, total)

        yield report

    def close(self) -> None:
        super().close()
        if self._view is not None:
            self._view.close()
            self._view = None
        if "_transfers" in self.__dict__:
            self._transfers.close()
            del self.__dict__["_transfers"]


class ChunkAppender:
    """Appends lines to a series of objects `NAME-00000`, `NAME-00001`, …, each rewritten until it is full.

    A thread writes every two seconds. If storage does not respond, a warning is logged and the last 16 chunks are kept;
    older ones are dropped.
    """

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, (self._name, _, self._suffix) = bucket, key.rpartition(".")
        self._lock = threading.Lock()
        self._chunk = bytearray()
        self._full: list[tuple[int, bytes]] = []
        self._number, self._stored = 0, 0
        self._ended = threading.Event()
        self._broken = False
        self._thread = threading.Thread(target=self._work, name="events", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        with self._lock:
            self._chunk += line.encode() + b"\n"
            if len(self._chunk) >= _CHUNK_BYTES:
                self._full = [*self._full, (self._number, bytes(self._chunk))][-16:]
                self._number, self._stored, self._chunk = self._number + 1, 0, bytearray()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._flush()

    def _work(self) -> None:
        while not self._ended.wait(_FLUSH_S):
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            full, self._full = self._full, []
            content = bytes(self._chunk)
            number, has_grown = self._number, len(content) > self._stored
        try:
            for full_number, chunk in full:
                self._bucket.put(self._key(full_number), chunk)
            if has_grown:
                self._bucket.put(self._key(number), content)
                with self._lock:
                    if self._number == number:
                        self._stored = len(content)
            self._broken = False
        except SpinError as error:
            if not self._broken:
                logger.warning("events could not be stored: %s", error)
            self._broken = True
            with self._lock:
                self._full = [*full, *self._full][-16:]

    def _key(self, number: int) -> str:
        return f"{self._name}-{number:05d}.{self._suffix}"
