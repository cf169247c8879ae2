"""`spin-pipeline` in a new process, whose driver starts in a fork of a warm Python where the environment names one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SPIN = [sys.executable, "-P", str(Path(__file__))]  # -P: without this folder on the path
"""The command, without arguments."""

WARM = "SPIN_TEST_WARM_PYTHON"
"""Environment variable: the executable of a `WarmPython`; without it the driver is a new process as well."""


def driver(executable: str) -> tuple[str, str, str]:
    """The command of a driver in a fork of a warm Python."""
    return (executable, "-m", "support.warm_driver")


if __name__ == "__main__":
    from spin_pipeline.cli import main
    from spin_pipeline.local import run

    if executable := os.environ.get(WARM):
        run.DRIVER = driver(executable)
    sys.exit(main())
