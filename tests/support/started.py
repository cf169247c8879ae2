"""A process of a test that does not outlive a failure of it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a process, and wait for it at the end of the block; one that raises kills it first.

    `subprocess.Popen` alone would wait for a process that sleeps, and the test's failure would never be seen.

    Args:
        command: with its arguments.
        options: of `subprocess.Popen`.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
