"""Writes a run's report, or another HTML page, to a file or to the run's storage."""

from __future__ import annotations

from pathlib import Path

from spin_components.errors import ConfigError
from spin_components.report.page import build_page
from spin_components.store import layout
from spin_components.store.open import open_run


def write_report(run_uri: str, output: str | None) -> tuple[str, int]:
    """Build the report of a run and write it.

    Args:
        run_uri: the run, finished or not.
        output: path of the file; None for `report/index.html` in the run's storage.

    Returns: address of the report, and its size in bytes.

    Raises:
        ConfigError: the run has nothing to report yet, or the file cannot be written.
        IntegrityError: stored files are damaged.
        StorageAccessError, StorageError: storage denies access, or does not answer.
    """
    with open_run(run_uri) as run:
        page = build_page(run).encode("utf-8", "replace")
        if output is None:
            run.write(layout.REPORT, page)
            return run.uri_of(layout.REPORT), len(page)
    return write_page(page, output), len(page)


def write_page(page: bytes, output: str) -> str:
    """Write a page to a file; returns its path.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page)
    except OSError as error:
        raise ConfigError(f"-o {output}: cannot be written: {error.strerror or error}; name another file") from error
    return str(path)
