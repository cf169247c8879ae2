"""What lies in a run's storage and is named by no manifest: left by steps that died, or superseded."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from spin_components.errors import ConfigError
from spin_components.store import layout
from spin_components.store.lease import LeaseHolder, check_free
from spin_components.store.manifests import read_manifest
from spin_components.store.run import RunStore, open_run
from spin_pipeline.lock import locked

_OWNED = ("data/", "base/", "inputs/", "iterations/")
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
)


@dataclass(frozen=True, slots=True)
class Garbage:
    """What may go.

    Attributes:
        files: key to bytes.
        unfinished: writes that were begun and never ended: uploads, and files on their way.
    """

    files: dict[str, int]
    unfinished: Sequence[str]

    @property
    def num_bytes(self) -> int:
        return sum(self.files.values())


def collect_garbage(run_uri: str, *, dry_run: bool) -> Garbage:
    """Find, and unless `dry_run` delete, what no manifest of a run names.

    Only what steps write is looked at (data, base, inputs, iterations); a file of another name is somebody's own.

    Raises:
        BusyError: the run is being worked on.
        ConfigError: no run is there.
        IntegrityError: a manifest cannot be read; nothing is deleted then.
    """
    with open_run(run_uri) as run:
        if not run.exists(layout.RUN):
            raise ConfigError(f"no run at {run.uri}: it has no {layout.RUN}")
        if dry_run:
            check_free(run)
            return Garbage(_unnamed(run), run.sweep(dry_run=True))
        with locked(run.scratch):
            lease = LeaseHolder(run, f"gc-{socket.gethostname()}-{os.getpid()}", take_over=True)
            try:
                garbage = Garbage(_unnamed(run), run.sweep())
                for key in garbage.files:
                    run.delete(key)
            finally:
                lease.close()
                lease.release()
        return garbage


def _unnamed(run: RunStore) -> dict[str, int]:
    named = set()
    for prefix, pattern in _MANIFESTS:
        for key in run.list(prefix, pattern):
            named |= {key, *read_manifest(run, key).outputs}
    for key in run.list("iterations", "*/epochs/*/partial.json"):
        if key.replace("partial.json", "manifest.json") not in named:  # of an epoch that is not finished
            named |= {key, *read_manifest(run, key).outputs}
    return {key: size for key, size in run.sizes("").items() if key.startswith(_OWNED) and key not in named}
