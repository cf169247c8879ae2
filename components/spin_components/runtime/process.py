"""The process that a step runs in: logging, exit codes, forked children, and their end with their parent.

It imports the standard library and `spin_components.errors` alone: every component imports it first.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spin_components.errors import SpinError
from spin_components.runtime.signals import Interrupted

ATTEMPT = "SPIN_ATTEMPT"
"""Environment variable: id of the attempt (the pipeline run) that a step's process works for."""

REPEAT = "SPIN_REPEAT"
"""Environment variable: why a step's work was begun again; empty at its first try."""

TERMINATION_LOG = Path("/dev/termination-log")
"""File whose text Kubernetes shows as the message of an ended container, and Argo as that of the task's node."""

_TERMINATION_LIMIT = 2000

STOPPED = ""
"""What a step returns instead of an address when the attempt's time is up; the steps after it pass it on."""


@contextmanager
def step_of(attempt: str) -> Iterator[None]:
    """Run the block as a step of an attempt, with logging.

    Args:
        attempt: id of the pipeline run that the step belongs to.

    Raises:
        SystemExit: in place of a SpinError, whose message goes to standard error, and of a signal.
    """
    configure_logging()
    os.environ[ATTEMPT] = attempt
    try:
        yield
    except SpinError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(error.exit_code) from error
    except Interrupted as error:
        raise SystemExit(128 + error.number) from error
    finally:
        os.environ.pop(ATTEMPT, None)  # what this process does next is not part of the attempt


def explain_end(step: str, reason: str) -> None:
    """Write why a step failed: as the last line of its log, and where Kubernetes keeps a container's last message.

    Args:
        step: its name.
        reason: in one or more lines.
    """
    parts = "; ".join(part.strip() for part in reason.splitlines() if part.strip())
    line = f"{step} failed: {parts.replace(':; ', ': ')}"
    sys.stderr.write(f"{line}\n")
    if TERMINATION_LOG.exists():  # only in a pod
        with suppress(OSError):
            TERMINATION_LOG.write_text(line[:_TERMINATION_LIMIT], encoding="utf-8")


def fork() -> int:
    """Fork this process.

    Returns: the child's pid; 0 in the child, which leads a session of its own and ends when this process ends.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.setsid()
        die_with_parent(parent)
    return child


def exit_code_of(child: int) -> int:
    """Wait for a forked child; returns its exit code, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def ending() -> Iterator[None]:
    """End this process with the block: with 0, with the code of a SystemExit, or after a traceback with 1."""
    code = 1
    try:
        yield
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def configure_logging() -> None:
    """Log time, level and message to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.captureWarnings(True)
    for name in ("httpx", "DeepSpeed", "vllm"):
        logging.getLogger(name).setLevel(logging.WARNING)


def die_with_parent(parent: int = 0, interval_s: float = 0.5) -> None:
    """Kill this process, and the group it leads, soon after its parent has ended.

    A process that is killed outright cannot end its children, which would go on writing beside the run's next attempt.

    Args:
        parent: the parent's pid where it is known, since it may have ended already; 0 for the parent of this moment.
        interval_s: seconds between two looks.
    """
    parent = parent or os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_s)
        end_process_group()

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def end_process_group() -> None:
    """Kill this process, and its group where it leads one."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
