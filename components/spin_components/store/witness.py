"""Remembers files as they were when they were hashed, and notices when they are others by the time they were used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from spin_components.errors import IntegrityError
from spin_components.store.digests import FileDigest, digest_file

_Signature = tuple[int, ...]


@dataclass
class Witness:
    """Digests of files outside the run, each with what the file system said of the file before it was hashed."""

    _seen: dict[Path, tuple[_Signature, FileDigest]] = field(default_factory=dict)

    def digest(self, path: Path) -> FileDigest:
        """Compute the digest of a file, and remember it."""
        signature = _signature(path)
        digest = digest_file(path)
        self._seen[path] = (signature, digest)
        return digest

    def expect(self, path: Path, digest: FileDigest) -> None:
        """Remember the known digest of a file that is about to be verified."""
        if path.is_file():
            self._seen[path] = (_signature(path), digest)

    def check_unchanged(self) -> None:
        """Check that every file is still what was hashed; reads those again whose size, time or inode differ.

        Raises:
            IntegrityError: a file was changed or removed meanwhile.
        """
        for path, (before, digest) in self._seen.items():
            try:
                if (now := _signature(path)) == before:
                    continue
                is_same = digest_file(path) == digest
            except OSError:
                is_same = False
            if not is_same:
                raise IntegrityError(
                    f"{path} changed while it was used: it was {digest.num_bytes} bytes with SHA-256 "
                    f"{digest.sha256:.12}… when it was read first. Nothing made from it is kept; run the same command "
                    "again once the file stays as it is"
                )
            self._seen[path] = (now, digest)


def _signature(path: Path) -> _Signature:
    """What changes with a file's content: device, inode, size, and the times of content and of inode."""
    stat = path.stat()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
