"""The storage of one run: keys in, verified local files out, every write whole or not at all."""

from __future__ import annotations

import json
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from spin_components.errors import IntegrityError
from spin_components.store.addresses import S3Address, parse_address, scheme_of
from spin_components.store.digests import FileDigest, digest_json

if TYPE_CHECKING:
    from spin_components.store.sources import Sources

_CHECKSUM = "checksum"

Progress = Callable[[str, int, int], None]
"""Told of a long transfer: its direction and object in words, bytes done, bytes in all."""


@dataclass(frozen=True, slots=True)
class Staged:
    """What is being written.

    Attributes:
        path: a file to write or a folder to fill.
        outputs: filled when the write is over: key below the run to digest.
    """

    path: Path
    outputs: dict[str, FileDigest] = field(default_factory=dict)


class Appender(Protocol):
    """Takes lines for one object; losing some is a warning, never an error."""

    def write(self, line: str) -> None:
        """Append one line."""

    def close(self) -> None:
        """Have everything stored."""


class RunStore(ABC):
    """Objects of a run below one address.

    Attributes:
        uri: the run's address.
        scratch: a folder of this machine for what is on its way; what lies there may be lost.
        poll_s: how often it may be asked what is new.
        on_progress: told of transfers that take a while.
        guard: called before a staged file or folder is published; raises where this process may not write any more.
    """

    uri: str
    scratch: Path
    poll_s: float = 0.3
    on_progress: Progress | None = None
    guard: Callable[[], None] | None = None

    def uri_of(self, key: str) -> str:
        """Address of an object, as it travels between steps."""
        return f"{self.uri}/{key}"

    def key_of(self, uri: str) -> str | None:
        """The key of an address within this run; None for an address elsewhere."""
        if scheme_of(uri) not in ("file", "s3"):
            return None
        text, root = str(parse_address(uri, what="address")), f"{self.uri}/"
        return text.removeprefix(root) if text.startswith(root) else None

    def list(self, prefix: str, pattern: str) -> list[str]:
        """Keys of files below a prefix, relative to which they match a pattern with as many `/`; sorted."""
        start = f"{prefix}/" if prefix else ""
        depth = pattern.count("/")
        names = ((key, key.removeprefix(start)) for key in self.sizes(prefix))
        return sorted(key for key, name in names if name.count("/") == depth and fnmatchcase(name, pattern))

    def read_json(self, key: str) -> dict[str, Any]:
        """Parse what `write_json` wrote.

        Raises:
            IntegrityError: it is missing, not JSON, or not what was written.
        """
        content = self.read(key)
        if content is None:
            raise IntegrityError(f"{self.uri_of(key)} is missing; the step that writes it has not finished")
        try:
            value = json.loads(content)
        except ValueError as error:
            raise IntegrityError(
                f"{self.uri_of(key)} is not JSON ({error}); delete it to have its step run again"
            ) from error
        checksum = value.pop(_CHECKSUM, None) if isinstance(value, dict) else None
        if checksum != digest_json(value):
            raise IntegrityError(
                f"{self.uri_of(key)} was changed after it was written: its {_CHECKSUM} is {checksum!s:.12}…, expected "
                f"{digest_json(value):.12}…. Put back what was there, or delete it to have its step run again"
            )
        return dict(value)

    def write_json(self, key: str, value: Mapping[str, Any]) -> None:
        """Write a JSON object with a checksum of itself, replacing any that is there, in one move."""
        plain = json.loads(json.dumps(value, allow_nan=False))
        text = json.dumps({**plain, _CHECKSUM: digest_json(plain)}, indent=2, ensure_ascii=False) + "\n"
        self.write(key, text.encode())

    @contextmanager
    def staged(self, key: str) -> Iterator[Staged]:
        """Write a file or folder; it takes the place of `key`, whole, when the block ends well."""
        with self._staging(key) as path:
            staged = Staged(path)
            yield staged
            if not path.exists():
                raise IntegrityError(f"nothing was written for {self.uri_of(key)}; what was there is kept")
            if self.guard is not None:
                self.guard()
            staged.outputs.update(self._publish(path, key))

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def sizes(self, prefix: str) -> dict[str, int]:
        """Every file below a prefix (all of them: `""`): key to bytes."""

    @abstractmethod
    def read(self, key: str, offset: int = 0) -> bytes | None:
        """A small file's content from an offset on; None where it is missing."""

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Write a small file, replacing any that is there, in one move."""

    @abstractmethod
    def fetch(self, files: Mapping[str, FileDigest], *, what: str, made_by: str = "") -> Path:
        """Have files on this machine, each checked against its digest.

        Args:
            files: key below the run to digest.
            what: they are, for the error.
            made_by: key of the manifest to delete to have them made again.

        Returns: a folder that has every file under its key, to be read only, until `close`.

        Raises:
            IntegrityError: a file is missing or altered.
        """

    @abstractmethod
    def delete(self, key: str) -> int:
        """Remove a file, or everything below a prefix, if it is there; returns the bytes freed."""

    @abstractmethod
    def sweep(self, *, dry_run: bool = False) -> Sequence[str]:
        """Remove what writers that died left behind, or only name it; nobody may be writing."""

    @abstractmethod
    def probe(self) -> None:
        """Write, read and delete a small object.

        Raises:
            StorageAccessError: that does not work here; says why and what to check.
        """

    @abstractmethod
    def appender(self, key: str) -> Appender:
        """Lines for one object, or for several that begin with its name."""

    @abstractmethod
    def _staging(self, key: str) -> AbstractContextManager[Path]:
        """A free path to write at, removed at the end if it is still there."""

    @abstractmethod
    def _publish(self, path: Path, key: str) -> dict[str, FileDigest]:
        """Move what lies at a staging path to its key, in place of what was there; returns digests by key."""

    @cached_property
    def sources(self) -> Sources:
        """What the run takes from elsewhere; open until `close`."""
        from spin_components.store.sources import Sources

        return Sources()

    def scratch_folder(self) -> Path:
        """A new path on this machine for a folder that is made of what was fetched; it is removed by `close`."""
        path = self.scratch / f".made-{uuid.uuid4().hex[:8]}.part"
        self._made.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    @cached_property
    def _made(self) -> ExitStack:
        return ExitStack()

    def close(self) -> None:
        """Let go of what `fetch`, `sources` and `scratch_folder` have given."""
        self._made.close()
        if "sources" in self.__dict__:
            self.sources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_run(run_uri: str) -> RunStore:
    """The storage at an address; nothing is created or contacted.

    Raises:
        ConfigError: the address cannot be one, or object storage is not configured.
    """
    address = parse_address(run_uri, what="run.uri")
    if isinstance(address, S3Address):
        from spin_components.store.remote import S3Run

        return S3Run(address)
    from spin_components.store.local import LocalRun

    return LocalRun(address)
