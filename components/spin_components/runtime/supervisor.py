"""Supervises a step: runs its work in a child process, and begins it again after a failure that a repeat may mend.

The process that KFP or the local driver starts stays small and imports no library of a step, so the kernel ends the
child where memory runs out. A child that was killed, or ended with an error that may pass (`SpinError.is_passing`, or
one of CUDA, NCCL or vLLM), is begun again after a pause, and goes on from what is in storage. Wrong settings, bad data
and non-finite losses are final. A repeat is a line in the log and a `warning` event; the report lists them.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_components.errors import EngineError, SpinError
from spin_components.machine import seconds
from spin_components.runtime.process import (
    REPEAT,
    STOPPED,
    configure_logging,
    ending,
    exit_code_of,
    explain_end,
    fork,
    step_of,
)
from spin_components.runtime.signals import Forwarding, forwarded

logger = logging.getLogger(__name__)

RETRIES = "SPIN_RETRIES"
"""Environment variable: how often a step's work is begun again; 3 by default, as `cluster.retries`."""

FIRST_PAUSE = "SPIN_RETRY_S"
"""Environment variable: seconds before the first repeat, twice as many before each further one; 5 by default."""

_LAST_PAUSE_S = 300.0
_OOM_SCORE = 300
_MESSAGE_LIMIT = 2000  # an outcome is far shorter than a pipe's buffer
_OF_A_DEVICE = re.compile(r"\b(CUDA|NCCL|HIP|cuBLAS)\b|CUBLAS_|DistBackendError|EngineDeadError|EngineCore")


@dataclass(frozen=True, slots=True)
class Failure:
    """How a child failed.

    Attributes:
        reason: in words.
        exit_code: of this process, where it is final.
        is_passing: whether a repeat may mend it.
        was_killed: whether a signal ended the child, which then recorded nothing.
    """

    reason: str
    exit_code: int
    is_passing: bool
    was_killed: bool = False


def run_step(attempt: str, target: str, *, is_optional: bool = False, **arguments: Any) -> str:
    """Run a step to its end; SIGINT and SIGTERM are passed on to its work, which is then not begun again.

    Args:
        attempt: id of the pipeline run that the step belongs to.
        target: the step's function, `package.module:function`, imported in the child.
        is_optional: whether its failure leaves the caller running.
        arguments: of the function.

    Returns: what the function returns; `STOPPED` where an optional step failed.

    Raises:
        SystemExit: the step failed, or was asked to end.
    """
    configure_logging()
    retries, pause_s = int(os.environ.get(RETRIES) or 3), seconds(FIRST_PAUSE, 5)
    name = target.partition(":")[0].split(".")[1].replace("_", "-")
    repeat = ""
    with forwarded() as signals:
        for number in range(retries + 1):
            returned = _run_once(attempt, target, arguments, repeat, signals)
            if isinstance(returned, str):
                return returned
            failure = returned
            if signals.number or not failure.is_passing or number == retries:
                break
            repeat = f"{name} was begun again, repeat {number + 1} of {retries}: {failure.reason}"
            logger.warning("%s; the next try begins in %.0f s", repeat, pause_s)
            if signals.wait(pause_s):
                break
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
        if failure.was_killed and not signals.number:
            tries = f", {number + 1} times" if number else ""
            _record(attempt, name, arguments, f"the step's process {failure.reason}{tries}; its last save is kept")
    if is_optional and not signals.number:
        logger.error("%s ended with %d; the run goes on without it and reports it at its end", name, failure.exit_code)
        return STOPPED
    if not signals.number:
        explain_end(name, failure.reason)
    raise SystemExit(128 + signals.number if signals.number and failure.was_killed else failure.exit_code)


def is_passing(error: BaseException) -> bool:
    """Whether a step that failed with an error may succeed if it is begun again."""
    if isinstance(error, SpinError):
        return error.is_passing
    return bool(_OF_A_DEVICE.search(f"{type(error).__name__}: {error}"))


def _run_once(attempt: str, target: str, arguments: dict[str, Any], repeat: str, signals: Forwarding) -> str | Failure:
    """Run the work in a child; returns what it returned, or how it failed."""
    reader, writer = os.pipe()
    if (child := fork()) == 0:
        signals.restore()
        _prefer_for_killing()
        os.environ[REPEAT] = repeat
        with ending(), step_of(attempt):
            try:
                module, _, function = target.partition(":")
                returned = getattr(importlib.import_module(module), function)(**arguments)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"[:_MESSAGE_LIMIT]
                os.write(writer, json.dumps({"reason": reason, "is_passing": is_passing(error)}).encode())
                raise
            os.write(writer, json.dumps({"returned": returned}).encode())
    with signals.to(child):
        code = exit_code_of(child)
    if code:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # ranks and engines, where the child could not end them
    os.close(writer)
    os.set_blocking(reader, False)  # a process that a tracker left may hold the other end
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        outcome: dict[str, Any] = json.loads(pipe.read() or b"{}")
    if code < 0:
        memory = " (out of memory?)" if -code == signal.SIGKILL else ""
        return Failure(f"was ended by {_name_of(-code)}{memory}", 1, is_passing=True, was_killed=True)
    if code:
        reason = str(outcome.get("reason", f"ended with code {code}"))
        return Failure(reason, code, is_passing=bool(outcome.get("is_passing")))
    return str(outcome["returned"])


def _record(attempt: str, name: str, arguments: dict[str, Any], reason: str) -> None:
    """Record the failure of a step whose process could not, as the step protocol does, and write it to the log."""
    if (child := fork()) == 0:
        with ending(), step_of(attempt):
            from spin_components.runtime.step import Step

            labels = {label: arguments[label] for label in ("iteration", "epoch", "shard") if label in arguments}
            with Step.begin(name, arguments["run_uri"], arguments.get("hardware"), **labels):
                raise EngineError(reason)
    exit_code_of(child)


def _prefer_for_killing() -> None:
    """Have the kernel end this process, and what it starts, rather than its parent where memory runs out."""
    path = Path("/proc/self/oom_score_adj")
    with suppress(OSError, ValueError):
        path.write_text(str(min(1000, int(path.read_text("ascii")) + _OOM_SCORE)), "ascii")


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
