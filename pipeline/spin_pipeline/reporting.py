"""Pages for people, written where they are asked for."""

from __future__ import annotations

from pathlib import Path

from spin_components.errors import ConfigError
from spin_components.report.page import build_page
from spin_components.store import layout
from spin_components.store.run import open_run


def write_report(run_uri: str, output: str | None) -> tuple[str, int]:
    """Build a run's report as it stands, and write it to a file, or to its place in the run's storage.

    Returns: where it lies, and its bytes.

    Raises:
        ConfigError: the run has nothing to report yet, or the file cannot be written.
        IntegrityError: what is stored is damaged.
        StorageAccessError, StorageError: storage refuses, or does not answer.
    """
    with open_run(run_uri) as run:
        page = build_page(run).encode("utf-8", "replace")
        if output is None:
            run.write(layout.REPORT, page)
            return run.uri_of(layout.REPORT), len(page)
    return write_page(page, output), len(page)


def write_page(page: bytes, output: str) -> str:
    """Write a page to a file.

    Returns: its path.

    Raises:
        ConfigError: that cannot be done.
    """
    path = Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page)
    except OSError as error:
        raise ConfigError(f"-o {output}: cannot be written: {error.strerror or error}; name another file") from error
    return str(path)
