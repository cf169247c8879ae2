"""Writes a run's report at the end of a step; a failure is a warning."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from spin_components.store import layout
from spin_components.store.run import RunStore

logger = logging.getLogger(__name__)


def refresh(run: RunStore, warn: Callable[[str], None]) -> None:
    """Write the run's report, unless an equal one exists.

    Args:
        run: the run.
        warn: called with a message if the report cannot be written.
    """
    started = time.monotonic()
    try:
        from spin_components.report.page import build_page

        page = build_page(run).encode("utf-8", "replace")
        if run.read(layout.REPORT) != page:
            with run.staged(layout.REPORT) as staged:
                staged.path.write_bytes(page)
        logger.info("report of %.1f MB in %.1f s", len(page) / 1e6, time.monotonic() - started)
    except Exception as error:  # of any kind: the run goes on without its report
        logger.warning("the report could not be written", exc_info=True)
        warn(f"the report could not be written ({type(error).__name__}: {error}); see `spin-pipeline report`")
