"""Finds earlier runs in storage: the best model to continue from, and whether data has been trained on before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from spin_components.data import builtin
from spin_components.errors import AlreadyTrainedError, SpinError
from spin_components.prepare.input_checks import named_sources
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import FileDigest, content_of, digest_json
from spin_components.store.open import open_run
from spin_components.store.sources import Sources
from spin_pipeline.runs.published import find_published, forked_model
from spin_pipeline.runs.status import read_status


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """A run in storage; `record` is its `run.json`."""

    uri: str
    record: dict[str, Any]

    @property
    def state(self) -> str:
        """State of the run; see `read_status`."""
        return read_status(self.uri).state


def data_digest(settings: Settings) -> str:
    """SHA-256 over the data of a configuration, read as in `prepare`.

    Raises:
        ConfigError, DataError: the data cannot be read.
        StorageAccessError, StorageError: storage denies access, or does not answer.
    """
    contents = {}
    with Sources() as sources:
        for name, uri in named_sources(settings).items():
            builtin_name = uri if builtin.is_builtin(uri) else None
            contents[name] = builtin_name or content_of(sources.open_data(uri, what=f"data.{name}").digests)
    return digest_json(contents)


def recorded_digest(record: dict[str, Any]) -> str:
    """SHA-256 over the data of a recorded run, comparable with `data_digest`."""
    contents = {}
    for name, source in record["data"].items():
        uri = str(
            record["settings"]["data"][name]
        )  # built-in data has no fixed content: it depends on the Python version
        files = {file: FileDigest.model_validate(digest) for file, digest in source["files"].items()}
        contents[name] = uri if builtin.is_builtin(uri) else content_of(files)
    return digest_json(contents)


def earlier_runs(folder: str) -> list[EarlierRun]:
    """Runs at or below an address, the newest first; damaged records are skipped."""
    with open_run(folder) as store:
        keys = [key for key in store.sizes("") if key == layout.RUN or key.endswith(f"/{layout.RUN}")]
        uris = [f"{store.uri}/{key.removesuffix(layout.RUN)}".rstrip("/") for key in keys]
    return sorted(_read(uris), key=lambda run: str(run.record.get("created_at", "")), reverse=True)


def _read(uris: Iterable[str]) -> Iterator[EarlierRun]:
    for uri in uris:
        with open_run(uri) as run:
            try:
                record = run.read_json(layout.RUN)
            except SpinError:
                continue
        if {"data", "settings"} <= record.keys():
            yield EarlierRun(uri, record)


def best_model(source: str) -> dict[str, Any] | None:
    """Values of `[model]` to continue from the best model of a run, or of the newest finished run below a folder.

    Returns: None if the folder has no finished run.

    Raises:
        ConfigError: the run has no finished iteration.
        IntegrityError: the run is damaged, or its weights were deleted.
    """
    with open_run(source) as run:
        if run.exists(layout.RUN):
            return _forked(run)
    for earlier in earlier_runs(source):
        if earlier.state == "done":
            with open_run(earlier.uri) as run:
                return _forked(run)
    return None


def _forked(run: RunStore) -> dict[str, Any]:
    return forked_model(run, find_published(run, "best"))


def check_new(digest: str, folder: str) -> None:
    """Check that no run below a folder has trained, or is training, on the data.

    Raises:
        AlreadyTrainedError: a run has or is.
    """
    for earlier in earlier_runs(folder):
        if recorded_digest(earlier.record) == digest and (state := earlier.state) in ("done", "running"):
            trained = "has trained" if state == "done" else "is training"
            raise AlreadyTrainedError(
                f"{earlier.uri} {trained} on this data already (digest {digest[:12]}…, started "
                f"{str(earlier.record.get('created_at', ''))[:19]}). Change the data, or leave out --once-for-data"
            )
