"""The report as a step leaves it: always tried, never a reason to fail."""

from __future__ import annotations

import logging
import time

from spin_components.execution import Step
from spin_components.store import layout

logger = logging.getLogger(__name__)


def refresh(current: Step) -> None:
    """Write the run's report, unless the same is there; what goes wrong is a warning event."""
    started = time.monotonic()
    try:
        from spin_components.report.page import build_page

        page = build_page(current.run).encode("utf-8", "replace")
        if current.run.read(layout.REPORT) != page:
            with current.run.staged(layout.REPORT) as staged:
                staged.path.write_bytes(page)
        logger.info("report of %.1f MB in %.1f s", len(page) / 1e6, time.monotonic() - started)
    except Exception as error:  # whatever it is: the run's work is worth more than a page about it
        logger.warning("the report could not be written", exc_info=True)
        message = f"the report could not be written ({type(error).__name__}: {error}); see `spin-pipeline report`"
        current.events.write("warning", message=message)
