"""Data and models that a run takes from elsewhere: paths, `s3://` and `hf://`, brought here and described."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from spin_components.errors import DataError, IntegrityError, StorageError
from spin_components.store.addresses import S3Address, local_path, parse_hub, parse_s3, scheme_of
from spin_components.store.bucket import Bucket, ObjectInfo
from spin_components.store.cache import FileCache, View, cache_folder, cache_limit
from spin_components.store.digests import FileDigest, damaged, digest_file, verify_tree

DATA_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")

_LIST_OF_SUFFIXES = ", ".join(DATA_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Source:
    """Files from one address.

    Attributes:
        uri: the address, exact: a hub's revision is a commit.
        folder: where the files are on this machine, to be read only.
        names: of the files, relative to it, in order.
        is_file: whether the address names a single file.
    """

    uri: str
    folder: Path
    names: tuple[str, ...]
    is_file: bool = False

    @property
    def files(self) -> dict[str, Path]:
        """Each file's address and its path here."""
        return {self.uri if self.is_file else f"{self.uri}/{name}": self.folder / name for name in self.names}

    @property
    def digests(self) -> dict[str, FileDigest]:
        """What each file is, by name; reads them all."""
        return {name: digest_file(self.folder / name) for name in self.names}


@dataclass
class Sources:
    """Opens addresses; what it has fetched stays until `close`."""

    _views: list[View] = field(default_factory=list)

    def open_data(self, uri: str, *, what: str) -> Source:
        """A data file, or every data file in a folder or below a prefix.

        Args:
            uri: path, `file://`, `s3://` or `hf://datasets/…`.
            what: the setting it came from, for the error.

        Raises:
            ConfigError: the address cannot be one.
            DataError: nothing is there that holds records.
            StorageAccessError, StorageError: storage refuses, or does not answer.
        """
        source = self._open(uri, what=what, kind="dataset", wanted=_is_data)
        if not source.names:
            raise DataError(f"{what} = {uri!r} holds no data file; expected one of {_LIST_OF_SUFFIXES} in it")
        return source

    def open_model(self, uri: str, *, what: str) -> Source:
        """Every file of a model folder; none where nothing is. Raises as `open_data` otherwise."""
        return self._open(uri, what=what, kind="model", wanted=_is_visible)

    def fetch_model(self, uri: str, files: Mapping[str, FileDigest], *, what: str) -> Path:
        """A model folder whose files are known, every one of them checked.

        Raises:
            IntegrityError: a file is missing or altered.
        """
        remedy = "put back the model that the run began with, or begin another run"
        source = self.open_model(uri, what=what)
        if lacking := [name for name in files if name not in source.names]:
            size = f"{files[lacking[0]].num_bytes} bytes"
            raise damaged(f"{uri}/{lacking[0]}", "is missing", size, what=what, remedy=remedy)
        try:
            verify_tree(source.folder, files, what=what, remedy=remedy)
        except IntegrityError as error:
            raise IntegrityError(str(error).replace(str(source.folder), source.uri)) from error
        return source.folder

    def close(self) -> None:
        """Let go of what was fetched."""
        while self._views:
            self._views.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, uri: str, *, what: str, kind: str, wanted: Callable[[str], bool]) -> Source:
        match scheme_of(uri):
            case "s3":
                return self._from_s3(parse_s3(uri, what=what), wanted)
            case "hf":
                from spin_components.store.hub import open_snapshot

                address, path = open_snapshot(parse_hub(uri, what=what), kind=kind, what=what)
                if path.is_file():
                    return Source(address, path.parent, (path.name,) if wanted(path.name) else (), is_file=True)
                return _in_folder(address, path, wanted)
            case _:
                return _here(local_path(uri, what=what), kind, what, wanted)

    @cached_property
    def _cache(self) -> FileCache:
        return FileCache(cache_folder(), cache_limit())

    def _from_s3(self, address: S3Address, wanted: Callable[[str], bool]) -> Source:
        bucket = Bucket(address.bucket)
        one = bucket.stat(address.key) if wanted(address.key.rpartition("/")[2]) and address.key else None
        prefix = address.key.rpartition("/")[0] if one else address.key
        start = f"{prefix}/" if prefix else ""
        found = [one] if one else [info for info in bucket.objects(start) if wanted(info.key.removeprefix(start))]
        view = self._cache.view()
        self._views.append(view)
        names = []
        for info in sorted(found, key=lambda info: info.key):
            name = info.key.removeprefix(start)
            self._link(bucket, info, view, name)
            names.append(name)
        return Source(str(address), view.folder, tuple(names), is_file=one is not None)

    def _link(self, bucket: Bucket, info: ObjectInfo, view: View, name: str) -> None:
        """Have one object in the view: from the cache where the storage's tag for it was seen before."""
        from spin_components.store.transfer import Transfers

        tag = hashlib.sha256(f"{bucket.endpoint} {bucket.name} {info}".encode()).hexdigest()
        for _ in range(3):  # another process may trim the cache between a download and its link
            digest = self._cache.recall(tag)
            if digest is None or not self._cache.has(digest):
                path = view.free_path()
                transfers = Transfers(bucket)
                try:
                    digest = transfers.download(info.key, path, info.num_bytes)
                    self._cache.add(path, digest)
                finally:
                    transfers.close()
                    path.unlink(missing_ok=True)
                self._cache.remember(tag, digest)
            if self._cache.link(digest, view.place(name, digest)):
                self._cache.trim()
                return
            view.forget(name)
        raise StorageError(f"s3://{bucket.name}/{info.key} leaves the cache as it comes; raise SPIN_CACHE_GIB")


def _here(path: Path, kind: str, what: str, wanted: Callable[[str], bool]) -> Source:
    if path.is_dir():
        return _in_folder(str(path), path, wanted)
    if kind == "model":
        return Source(str(path), path, ())
    if not path.exists():
        raise DataError(
            f"{what} = {str(path)!r} does not exist, expected a JSONL or Parquet file or a folder of them; "
            "check the path and the mounts"
        )
    if not wanted(path.name):
        raise DataError(
            f"{what} = {str(path)!r} has the suffix {path.suffix!r}, expected one of {_LIST_OF_SUFFIXES}; "
            "convert or rename the file"
        )
    return Source(str(path), path.parent, (path.name,), is_file=True)


def _in_folder(uri: str, folder: Path, wanted: Callable[[str], bool]) -> Source:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Source(uri, folder, tuple(sorted(name for name in names if wanted(name))))


def _is_visible(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


def _is_data(name: str) -> bool:
    return _is_visible(name) and name.endswith(DATA_SUFFIXES)
