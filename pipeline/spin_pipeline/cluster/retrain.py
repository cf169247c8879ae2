"""Training again: from the best model so far, and once for each data set. Told from what runs recorded in storage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spin_components.errors import AlreadyTrainedError, SpinError
from spin_components.prepare import builtin
from spin_components.prepare.checks import named_sources
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import FileDigest, content_of, digest_json
from spin_components.store.run import RunStore, open_run
from spin_components.store.sources import Sources
from spin_pipeline.published import find_published, forked_model
from spin_pipeline.status import read_status


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run that was recorded.

    Attributes:
        record: its `run.json`.
    """

    uri: str
    record: dict[str, Any]

    @property
    def state(self) -> str:
        """As `spin-pipeline status` says."""
        return read_status(self.uri).state


def data_digest(settings: Settings) -> str:
    """One SHA-256 for the data that a configuration names, read as `prepare` reads it.

    Raises:
        ConfigError, DataError: it cannot be read.
        StorageAccessError, StorageError: storage refuses, or does not answer.
    """
    contents = {}
    with Sources() as sources:
        for name, uri in named_sources(settings).items():
            given = uri if builtin.is_builtin(uri) else None
            contents[name] = given or content_of(sources.open_data(uri, what=f"data.{name}").digests)
    return digest_json(contents)


def recorded_digest(record: dict[str, Any]) -> str:
    """The same for the data of a recorded run."""
    contents = {}
    for name, source in record["data"].items():
        given = str(record["settings"]["data"][name])  # what is made of Python's own files may differ in a pod
        files = {file: FileDigest.model_validate(digest) for file, digest in source["files"].items()}
        contents[name] = given if builtin.is_builtin(given) else content_of(files)
    return digest_json(contents)


def earlier_runs(folder: str) -> list[Earlier]:
    """Runs at an address or below it, the newest first; damaged records are passed over."""
    with open_run(folder) as store:
        keys = [key for key in store.sizes("") if key == layout.RUN or key.endswith(f"/{layout.RUN}")]
        places = [(key.removesuffix(layout.RUN).rstrip("/"), store.uri) for key in keys]
    found = list(_read(f"{uri}/{place}".rstrip("/") for place, uri in places))
    return sorted(found, key=lambda run: str(run.record.get("created_at", "")), reverse=True)


def _read(uris: Iterator[str]) -> Iterator[Earlier]:
    for uri in uris:
        with open_run(uri) as run:
            try:
                record = run.read_json(layout.RUN)
            except SpinError:
                continue
        if {"data", "settings"} <= record.keys():
            yield Earlier(uri, record)


def best_model(source: str) -> dict[str, Any] | None:
    """What `[model]` says to go on from the best iteration of a run, or of the newest finished run below a folder.

    Returns: None where the folder has no finished run yet.

    Raises:
        ConfigError: the run has no finished iteration.
        IntegrityError: it is damaged, or its weights are gone.
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
    """Refuse data that a run below a folder has trained on, or is training on.

    Raises:
        AlreadyTrainedError: names the run.
    """
    for earlier in earlier_runs(folder):
        if recorded_digest(earlier.record) == digest and (state := earlier.state) in ("done", "running"):
            trained = "has trained" if state == "done" else "is training"
            raise AlreadyTrainedError(
                f"{earlier.uri} {trained} on this data already (digest {digest[:12]}…, begun "
                f"{str(earlier.record.get('created_at', ''))[:19]}); there is nothing new to learn from. Change the "
                "data, or leave out --once-for-data"
            )
