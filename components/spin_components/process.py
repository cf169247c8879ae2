"""How a process performs a step: the one call that a component makes, logging, and the end of a process's family.

It imports nothing beyond the standard library but errors: with a warm server, the process that KFP starts for a step
only hands it on.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import time
from typing import Any

from spin_components.errors import SpinError

WARM_SERVER = "SPIN_WARM_SERVER"
"""Names the socket of a local run's server (`spin_components.warm`)."""
RUNNER = "SPIN_RUNNER"
"""Names the pid of the process that runs an attempt's steps one after another, on one machine."""
ATTEMPT = "SPIN_ATTEMPT"
"""Names the attempt, the pipeline run, that a step's process works for."""
STOPPED = ""
"""What a step returns instead of an address when the attempt's time is up: the steps after it pass it on."""


def perform(target: str, attempt: str, **arguments: Any) -> str:
    """Run a step function, in the warm server of a local run where there is one, else in this process.

    Args:
        target: `module:function` below this package.
        attempt: id of the pipeline run that the step is part of.
        arguments: plain JSON values.

    Returns: what the function returns, one string.

    Raises:
        SystemExit: the step failed in a way that is explained on standard error.
    """
    if address := os.environ.get(WARM_SERVER):
        from spin_components.warm import request

        return request(address, target, attempt, arguments)
    return call(target, attempt, arguments)


def perform_optional(target: str, attempt: str, **arguments: Any) -> str:
    """As `perform`, for a step that others must not fall with: a failure stands in the run's events and in the log.

    Returns: what the function returns; empty where it failed.
    """
    try:
        return perform(target, attempt, **arguments)
    except SystemExit as error:
        sys.stderr.write(f"{target} ended with {error.code}; the run goes on without it, and says so at its end\n")
        return STOPPED


def call(target: str, attempt: str, arguments: dict[str, Any]) -> str:
    """Import and call a step function; a SpinError becomes one message and an exit code."""
    configure_logging()
    os.environ[ATTEMPT] = attempt
    module, function = target.split(":")
    try:
        return str(getattr(importlib.import_module(f"spin_components.{module}"), function)(**arguments))
    except SpinError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(error.exit_code) from error
    finally:
        os.environ.pop(ATTEMPT, None)  # what this process does next is no part of the attempt


def configure_logging() -> None:
    """Lines of time, level and message on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.captureWarnings(True)
    for name in ("httpx", "DeepSpeed", "vllm"):
        logging.getLogger(name).setLevel(logging.WARNING)


def die_with_parent(interval_s: float = 0.5) -> None:
    """End this process, and the group it leads, soon after its parent has ended.

    A runner that is killed outright cannot end its children; without this they would go on writing beside the
    run that replaces it.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_s)
        end_process_group()

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def end_process_group() -> None:
    """Kill this process, and with it the group where it leads one."""
    import signal

    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
