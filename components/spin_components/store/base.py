"""Interface of a run's storage: atomic writes by key, and verified local copies of files."""

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

from spin_components.errors import BusyError, IntegrityError
from spin_components.store import layout
from spin_components.store.addresses import parse_address, scheme_of
from spin_components.store.checked_json import StoredTable, json_bytes, parse_json
from spin_components.store.digests import FileDigest
from spin_components.store.keys import check_key
from spin_components.store.moving import each_address, elsewhere, is_absolute, relative
from spin_components.store.stored import Guard, Stored

if TYPE_CHECKING:
    from spin_components.store.sources import Sources


_TRIES = 5


TransferProgress = Callable[[str, int, int], None]
"""Callback during a long transfer; takes a description, the bytes done and the total bytes."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A file or folder being written; see `RunStore.staged`.

    Attributes:
        path: path to write the file to, or to create the folder at.
        outputs: digests by key, set once the block has ended.
    """

    path: Path
    outputs: dict[str, FileDigest] = field(default_factory=dict)


class Appender(Protocol):
    """Writer of lines that logs a warning instead of raising when storage fails."""

    def write(self, line: str) -> None:
        """Append one line."""

    def close(self) -> None:
        """Store all pending lines."""


class RunStore(ABC):
    """Storage of a run; keys are relative to its address.

    Attributes:
        uri: address of the run.
        scratch: local folder for temporary files.
        poll_s: recommended interval between polls for new objects, seconds.
        on_progress: called during long transfers.
        guard: called before a write that replaces something, and before a deletion; raises if this process has lost
            the run's lease.
    """

    uri: str
    scratch: Path
    poll_s: float = 0.3
    on_progress: TransferProgress | None = None
    guard: Guard | None = None

    def uri_of(self, key: str) -> str:
        """Return the address of a key."""
        return f"{self.uri}/{key}"

    def key_of(self, uri: str) -> str | None:
        """Return the key of an address; None if it is not within this run.

        Raises:
            IntegrityError: the address is relative and names no file of the run.
        """
        if scheme_of(uri) not in ("file", "s3"):
            return None
        text, root = str(parse_address(self.resolve(uri), what="address")), f"{self.uri}/"
        return text.removeprefix(root) if text.startswith(root) else None

    def resolve(self, uri: str) -> str:
        """Return an address as it is now, given how it was stored: relative to the run, or where things lay before.

        Raises:
            IntegrityError: the address is relative and names no file of the run.
        """
        if not uri or uri.startswith(f"{self.uri}/"):
            return uri
        if not is_absolute(uri):
            return self.uri_of(check_key(uri, where=self.uri))
        began, moved = self._elsewhere
        uri = moved.get(uri, uri)
        key = relative(uri, began) if began else uri
        return uri if is_absolute(key) else self.uri_of(check_key(key, where=self.uri))

    @cached_property
    def _elsewhere(self) -> tuple[str, dict[str, str]]:
        """Where the run and its base model lay before; see `moving.elsewhere`."""
        try:
            return elsewhere(json.loads(self.read(layout.RUN) or b"{}"), self.uri)
        except ValueError:
            return "", {}

    def list(self, prefix: str, pattern: str) -> list[str]:
        """List keys below a prefix, sorted, whose part after the prefix matches a glob pattern with as many `/`."""
        start = f"{prefix}/" if prefix else ""
        depth = pattern.count("/")
        names = ((key, key.removeprefix(start)) for key in self.sizes(prefix))
        return sorted(key for key, name in names if name.count("/") == depth and fnmatchcase(name, pattern))

    def read_json(self, key: str) -> dict[str, Any]:
        """Read a JSON object that `write_json` wrote; addresses within the run are returned as they are now.

        Raises:
            IntegrityError: it is missing, not JSON, its checksum differs, or an address leaves the run.
        """
        content = self.read(key)
        if content is None:
            raise IntegrityError(f"{self.uri_of(key)} is missing; the step that writes it has not finished")
        value = parse_json(content, self.uri_of(key))
        if key == layout.RUN:
            self.__dict__["_elsewhere"] = elsewhere(value, self.uri)
        return StoredTable(each_address(value, self.resolve), self.uri_of(key))

    def write_json(self, key: str, value: Mapping[str, Any]) -> None:
        """Write a JSON object with a checksum, atomically, replacing an existing one.

        Addresses within the run are stored relative to it. Where there is a `guard`, what another process wrote after
        the guard's success is not replaced.

        Raises:
            BusyError: the guard refused, or the object is replaced again and again.
        """
        content = json_bytes(each_address(value, lambda uri: relative(uri, self.uri)))
        if self.guard is None:
            self.write(key, content)
            return
        for _ in range(_TRIES):
            if self.replace(key, content, self.tag_of(key), self.guard):
                return
        raise BusyError(f"{self.uri_of(key)} is being replaced by another process; end it, and run the same command")

    def delete(self, key: str) -> int:
        """Delete a file, or all files below a prefix, if they exist and the guard allows it; returns the bytes freed.

        Raises:
            BusyError: the guard refused.
        """
        if self.guard is not None:
            self.guard()
        return self.remove(key)

    @contextmanager
    def staged(self, key: str) -> Iterator[Staged]:
        """Context manager to write a file or folder, which replaces `key` atomically unless the block raises.

        Raises:
            IntegrityError: the block wrote nothing.
        """
        with self._staging(key) as path:
            staged = Staged(path)
            yield staged
            if not path.exists():
                raise IntegrityError(f"nothing was written for {self.uri_of(key)}; its previous content is kept")
            staged.outputs.update(self._publish(path, key))

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether a file exists."""

    @abstractmethod
    def sizes(self, prefix: str) -> dict[str, int]:
        """Return sizes in bytes, by key, of the files below a prefix; all files for `""`."""

    @abstractmethod
    def read(self, key: str, offset: int = 0) -> bytes | None:
        """Read a small file from an offset in bytes; None if it does not exist."""

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Write a small file atomically, replacing an existing one."""

    @abstractmethod
    def fetch(self, files: Mapping[str, FileDigest], *, what: str, made_by: str = "") -> Path:
        """Make files available on this machine and verify them.

        Args:
            files: digests by key.
            what: name of the files, for the error.
            made_by: key of the manifest that the error advises to delete, so that its step runs again.

        Returns: a folder with every file under its key, read-only and valid until `close`.

        Raises:
            IntegrityError: a file is missing or altered.
        """

    @abstractmethod
    def read_stored(self, key: str) -> Stored | None:
        """Read a small file with its tag and the storage's times; None if it does not exist."""

    @abstractmethod
    def tag_of(self, key: str) -> str | None:
        """Return the tag of a file, as `read_stored`; None if it does not exist."""

    @abstractmethod
    def create(self, key: str, content: bytes) -> bool:
        """Write a small file unless it exists; True for exactly one of several concurrent creators."""

    @abstractmethod
    def replace(self, key: str, content: bytes, tag: str | None, guard: Guard | None = None) -> bool:
        """Write a small file that still has a tag (None: that does not exist); False where it has changed.

        The guard is called before every request that may write.

        Object storage that does not implement conditions writes it in any case; see `store.conditional`.
        """

    @abstractmethod
    def now(self) -> float | None:
        """Return the time by the storage's clock, seconds since 1970; None if it does not report it."""

    @abstractmethod
    def remove(self, key: str) -> int:
        """Delete a file, or all files below a prefix, whatever the guard says; returns the bytes freed."""

    @abstractmethod
    def sweep(self, *, dry_run: bool = False) -> Sequence[str]:
        """Remove leftovers of this run's writers that died, or only list them; must not run during writes.

        Files of any other name, and whatever lies in another run below this one, stay.
        """

    @abstractmethod
    def probe(self) -> None:
        """Check access by writing, reading and deleting a small object.

        Raises:
            StorageAccessError: one of these fails; the message says what to check.
        """

    @abstractmethod
    def appender(self, key: str) -> Appender:
        """Create a writer of lines to one object, or to a series of objects named after it."""

    @abstractmethod
    def _staging(self, key: str) -> AbstractContextManager[Path]:
        """Context manager with an unused local path, removed at the end if it still exists."""

    @abstractmethod
    def _publish(self, path: Path, key: str) -> dict[str, FileDigest]:
        """Move a staged file or folder to its key if the guard allows it; returns digests by key."""

    @cached_property
    def sources(self) -> Sources:
        """Data and models from outside the run; open until `close`."""
        from spin_components.store.sources import Sources

        return Sources()

    def check_sources(self) -> None:
        """Check that no file outside the run changed since its digest was taken; called before what it gave is kept.

        Raises:
            IntegrityError: one did.
        """
        if "sources" in self.__dict__:
            self.sources.check_unchanged()

    def scratch_folder(self) -> Path:
        """Return a new local path for a temporary folder, which `close` removes."""
        path = self.scratch / f".made-{uuid.uuid4().hex[:8]}.part"
        self._scratch_folders.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    @cached_property
    def _scratch_folders(self) -> ExitStack:
        return ExitStack()

    def close(self) -> None:
        """Release files and folders from `fetch`, `sources` and `scratch_folder`."""
        self._scratch_folders.close()
        if "sources" in self.__dict__:
            self.sources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
