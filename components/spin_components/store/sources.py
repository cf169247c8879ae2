"""Access to data and models outside a run, from local paths, `s3://` and `hf://`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from spin_components.errors import ConfigError, DataError, IntegrityError, StorageError
from spin_components.store.addresses import (
    S3Address,
    check_text,
    local_path,
    parse_hub,
    parse_s3,
    scheme_of,
    split_address,
)
from spin_components.store.bucket import Bucket, ObjectInfo
from spin_components.store.cache import FileCache, View, cache_folder, cache_limit
from spin_components.store.digests import FileDigest, damaged, verify_tree
from spin_components.store.keys import flaw_of, shown
from spin_components.store.splits import choose_files, without_metadata
from spin_components.store.witness import Witness

DATA_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".arrow")

_LIST_OF_SUFFIXES = ", ".join(DATA_SUFFIXES)

_Choose: TypeAlias = Callable[[list[str]], list[str]]  # the files of a folder to open, of those wanted


@dataclass(frozen=True, slots=True)
class Source:
    """Local copies of the files at one address.

    Attributes:
        uri: the address; for `hf://` with the commit as its revision.
        folder: local folder of the files, read-only.
        names: paths of the files relative to the folder, sorted.
        is_file: whether the address names a single file.
        split: split of a data set that the address names after `#`.
        left_out: data files of other splits.
        witness: notices changes of the files after `digests`.
    """

    uri: str
    folder: Path
    names: tuple[str, ...]
    is_file: bool = False
    split: str = ""
    left_out: tuple[str, ...] = ()
    witness: Witness = field(default_factory=Witness, compare=False, repr=False)

    @property
    def files(self) -> dict[str, Path]:
        """Local path of each file, by address."""
        start = self.uri.removesuffix(f"#{self.split}")
        return {start if self.is_file else f"{start}/{name}": self.folder / name for name in self.names}

    @property
    def digests(self) -> dict[str, FileDigest]:
        """Digest of each file, by name; reads all files."""
        return {name: self.witness.digest(self.folder / name) for name in self.names}


@dataclass
class Sources:
    """Opens addresses of data and models; downloaded files exist until `close`."""

    _views: list[View] = field(default_factory=list)
    _witness: Witness = field(default_factory=Witness)

    def open_data(self, uri: str, *, what: str, recorded: Collection[str] = ()) -> Source:
        """Open a data file, or the data files of a split in a folder or below a prefix; see `choose_files`.

        Args:
            uri: path, `file://`, `s3://` or `hf://datasets/…`, with `#split` for a split.
            what: name of the setting, for the error and for the split of an address without one.
            recorded: files that a run began with; where they are all that there are, they are opened whatever their
                split, as they were before splits were told apart.

        Raises:
            ConfigError: the address is invalid.
            DataError: there is no data file, or none of the split.
            StorageAccessError: storage denies access.
            StorageError: storage does not respond.
        """
        address, split = split_address(uri)
        if split and scheme_of(uri) == "file" and Path(uri).exists():
            address, split = uri, ""
        left_out: list[str] = []

        def choose(names: list[str]) -> list[str]:
            files = without_metadata(names)
            chosen = files
            if files and set(files) != set(recorded):
                chosen = choose_files(files, split, what=what, address=address)
            left_out[:] = [name for name in files if name not in chosen]
            return chosen

        source = self._open(address, what=what, kind="dataset", is_wanted=_is_data, choose=choose)
        if not source.names:
            raise DataError(f"{what} = {uri!r} contains no data file; expected one of {_LIST_OF_SUFFIXES} in it")
        if source.is_file and split:
            raise DataError(f"{what} = {uri!r} names a split of a file, expected one of a folder; leave #{split} out")
        named = f"{source.uri}#{split}" if split else source.uri
        return replace(source, uri=named, split=split, left_out=tuple(left_out))

    def read_text(self, uri: str, *, what: str) -> str:
        """The text of one small file.

        Raises:
            ConfigError: the address is invalid, or no file of UTF-8 text; otherwise raises as `open_data`.
        """
        if scheme_of(uri) == "file":
            path = local_path(uri, what=what)
            files = [path] if path.is_file() else []
        else:
            files = list(self._open(uri, what=what, kind="model", is_wanted=_is_visible).files.values())
        if len(files) != 1:
            raise ConfigError(f"{what} = {uri!r} is not a file; check the path")
        try:
            return files[0].read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{what} = {uri!r} is not text in UTF-8: {error}") from error

    def open_model(self, uri: str, *, what: str) -> Source:
        """Open all files of a model folder, which may be none; otherwise raises as `open_data`."""
        return self._open(uri, what=what, kind="model", is_wanted=_is_visible)

    def fetch_model(self, uri: str, files: Mapping[str, FileDigest], *, what: str) -> Path:
        """Return the local folder of a model whose digests are known, verified.

        Raises:
            IntegrityError: a file is missing or altered.
        """
        remedy = "restore the model that the run started with, or start another run"
        source = self.open_model(uri, what=what)
        if missing := [name for name in files if name not in source.names]:
            size = f"{files[missing[0]].num_bytes} bytes"
            raise damaged(f"{uri}/{missing[0]}", "is missing", size, what=what, remedy=remedy)
        for name, digest in files.items():
            self._witness.expect(source.folder / name, digest)
        try:
            verify_tree(source.folder, files, what=what, remedy=remedy)
        except IntegrityError as error:
            raise IntegrityError(str(error).replace(str(source.folder), source.uri)) from error
        return source.folder

    def check_unchanged(self) -> None:
        """Check that every file whose digest was taken is still the same.

        Raises:
            IntegrityError: one changed meanwhile.
        """
        self._witness.check_unchanged()

    def close(self) -> None:
        """Remove the downloaded files from this process's views; they stay in the cache."""
        while self._views:
            self._views.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(
        self, uri: str, *, what: str, kind: str, is_wanted: Callable[[str], bool], choose: _Choose = list
    ) -> Source:
        source = self._find(uri, what, kind, is_wanted, choose)
        return replace(source, witness=self._witness)

    def _find(self, uri: str, what: str, kind: str, is_wanted: Callable[[str], bool], choose: _Choose) -> Source:
        match scheme_of(uri):
            case "s3":
                return self._open_s3(parse_s3(uri, what=what), is_wanted, choose)
            case "hf":
                from spin_components.store.hub import open_snapshot

                address, path = open_snapshot(parse_hub(uri, what=what), kind=kind, what=what)
                if path.is_file():
                    return Source(address, path.parent, (path.name,) if is_wanted(path.name) else (), is_file=True)
                return _open_folder(address, path, is_wanted, choose)
            case _:
                return _open_local(local_path(uri, what=what), kind, what, is_wanted, choose)

    @cached_property
    def _cache(self) -> FileCache:
        return FileCache(cache_folder(), cache_limit())

    def _open_s3(self, address: S3Address, is_wanted: Callable[[str], bool], choose: _Choose) -> Source:
        bucket = Bucket(address.bucket)
        file = bucket.stat(address.key) if is_wanted(address.key.rpartition("/")[2]) and address.key else None
        prefix = address.key.rpartition("/")[0] if file else address.key
        start = f"{prefix}/" if prefix else ""
        objects = [file] if file else list(bucket.objects(start))
        if file is None:
            named = {info.key.removeprefix(start): info for info in objects}
            wanted = choose(sorted(name for name in named if is_wanted(name)))
            if flawed := [name for name in wanted if flaw_of(name)]:
                raise DataError(
                    f"{address} has an object whose name {shown(start + flawed[0])} {flaw_of(flawed[0])} after the "
                    "prefix; a file of that name would lie outside its folder. Rename or delete it"
                )
            objects = [named[name] for name in wanted]
        view = self._cache.view()
        self._views.append(view)
        names = []
        for info in sorted(objects, key=lambda info: info.key):
            name = info.key.removeprefix(start)
            self._link(bucket, info, view, name)
            names.append(name)
        return Source(str(address), view.folder, tuple(names), is_file=file is not None)

    def _link(self, bucket: Bucket, info: ObjectInfo, view: View, name: str) -> None:
        """Link one object into the view, downloading it unless an object with its ETag is cached."""
        from spin_components.store.transfer import Transfers

        tag = hashlib.sha256(f"{bucket.endpoint} {bucket.name} {info}".encode()).hexdigest()
        for _ in range(3):  # another process may trim the cache between a download and its link
            digest = self._cache.recall(tag)
            if digest is None or not self._cache.has(digest):
                path = view.free_path()
                transfers = Transfers(bucket)
                try:
                    digest = transfers.download(info.key, path, info.num_bytes, etag=info.etag)
                    self._cache.add(path, digest)
                finally:
                    transfers.close()
                    path.unlink(missing_ok=True)
                self._cache.remember(tag, digest)
            if self._cache.link(digest, view.link_path(name, digest)):
                self._cache.trim()
                return
            view.forget(name)
        raise StorageError(f"s3://{bucket.name}/{info.key} is evicted from the cache before use; raise SPIN_CACHE_GIB")


def _open_local(path: Path, kind: str, what: str, is_wanted: Callable[[str], bool], choose: _Choose) -> Source:
    if path.is_dir():
        return _open_folder(str(path), path, is_wanted, choose)
    if kind == "model":
        return Source(str(path), path, ())
    if not path.exists():
        raise DataError(
            f"{what} = {str(path)!r} does not exist, expected a JSONL or Parquet file or a folder of them; "
            "check the path and the mounts"
        )
    if not path.is_file():
        raise DataError(
            f"{what} = {str(path)!r} is a pipe or a device, expected a regular file, which is read more than once; "
            "write the data to a file"
        )
    if not is_wanted(path.name):
        raise DataError(
            f"{what} = {str(path)!r} has the suffix {path.suffix!r}, expected one of {_LIST_OF_SUFFIXES}; "
            "convert or rename the file"
        )
    return Source(str(path), path.parent, (path.name,), is_file=True)


def _open_folder(uri: str, folder: Path, is_wanted: Callable[[str], bool], choose: _Choose) -> Source:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    wanted = sorted(name for name in names if is_wanted(name))
    for name in wanted:
        check_text(name, what=f"the name of a file in {uri}")
    return Source(uri, folder, tuple(choose(wanted)))


def _is_visible(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


def _is_data(name: str) -> bool:
    return _is_visible(name) and name.endswith(DATA_SUFFIXES)
