"""Garbage collection: deletes files of a run that no manifest references, left by killed steps or superseded."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from spin_components.errors import ConfigError
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.lease import check_free
from spin_components.store.lease_holder import LeaseHolder
from spin_components.store.lock import locked
from spin_components.store.manifests import read_manifest
from spin_components.store.open import open_run
from spin_components.store.ownership import folders_of_other_runs, is_own

_OWNED = ("data/", "base/", "inputs/", "iterations/", "warm_up/", "control/")
"""Folders whose files manifests list."""
_MANIFESTS = (
    ("inputs", "*.json"),
    ("data", "manifest.json"),
    ("base", "*.json"),
    ("iterations", "*/generations/*.json"),
    ("iterations", "*/ref_logprobs/*.json"),
    ("iterations", "*/epochs/*/manifest.json"),
    ("iterations", "*/epochs/*/validation.json"),
    ("iterations", "*/checkpoint.json"),
    ("iterations", "*/evaluation.json"),
    ("warm_up", "manifest.json"),
    ("warm_up", "evaluation.json"),
    ("warm_up", "epochs/*/manifest.json"),
    ("warm_up", "epochs/*/validation.json"),
    ("control", "*/manifest.json"),
    ("control", "*/evaluation.json"),
    ("control", "*/epochs/*/manifest.json"),
    ("control", "*/epochs/*/validation.json"),
)


@dataclass(frozen=True, slots=True)
class Garbage:
    """Files of a run that may be deleted.

    Attributes:
        files: sizes in bytes, by key.
        unfinished: writes that were started but not completed: multipart uploads and temporary files.
    """

    files: dict[str, int]
    unfinished: Sequence[str]

    @property
    def num_bytes(self) -> int:
        return sum(self.files.values())


def collect_garbage(run_uri: str, *, dry_run: bool) -> Garbage:
    """Find the files that no manifest of a run references, and delete them unless `dry_run`.

    Of the folders that steps write to, files are deleted whose names are those that
    steps give; other files may be a user's, and what is inside another run is that run's.

    Raises:
        BusyError: the run is in use.
        ConfigError: there is no run at the address.
        IntegrityError: a manifest cannot be read; nothing is deleted then.
    """
    with open_run(run_uri) as run:
        if not run.exists(layout.RUN):
            raise ConfigError(f"no run at {run.uri}: it has no {layout.RUN}")
        if dry_run:
            check_free(run)
            return Garbage(_unreferenced(run), run.sweep(dry_run=True))
        with locked(run.scratch):
            lease = LeaseHolder(run, f"gc-{socket.gethostname()}-{os.getpid()}", take_over=True, label="gc")
            run.guard = lease.check
            try:
                garbage = Garbage(_unreferenced(run), run.sweep())
                for key in garbage.files:
                    run.delete(key)
            finally:
                lease.close(is_last=True)
        return garbage


def _unreferenced(run: RunStore) -> dict[str, int]:
    """Sizes in bytes of the files that no manifest references, by key."""
    referenced = set()
    for prefix, pattern in _MANIFESTS:
        for key in filter(is_own, run.list(prefix, pattern)):
            referenced |= {key, *read_manifest(run, key).outputs}
    partial = (("iterations", "*/epochs"), ("warm_up", "epochs"), ("control", "*/epochs"))
    for key in (key for prefix, epochs in partial for key in run.list(prefix, f"{epochs}/*/partial.json")):
        if key.replace("partial.json", "manifest.json") not in referenced:  # the epoch is unfinished
            referenced |= {key, *read_manifest(run, key).outputs}
    if layout.DATA_MANIFEST not in referenced and run.exists(layout.RENDERED_MANIFEST):  # prepare goes on from there
        referenced |= {layout.RENDERED_MANIFEST, *read_manifest(run, layout.RENDERED_MANIFEST).outputs}
    sizes = run.sizes("")
    others = folders_of_other_runs(sizes)
    return {
        key: size
        for key, size in sizes.items()
        if key.startswith(_OWNED) and is_own(key) and key not in referenced and not key.startswith(others)
    }
