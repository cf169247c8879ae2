"""Attempts at a run, each in a separate process that can be killed.

Importing torch takes seconds, so a fork server imports it once and forks for each attempt. It computes nothing
before the fork.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.warm_spin import WARM

PRELOADED = [
    "pyarrow.dataset",
    "pyarrow.parquet",
    "torch",
    "deepspeed",
    "transformers.models.llama.modeling_llama",
    "tokenizers.trainers",
    "spin_components.checkpoint.step",
    "spin_components.generate.step",
    "spin_components.engine.transformers_engine",
    "spin_components.prepare.step",
    "spin_components.ref_logprob.step",
    "spin_components.store.remote",
    "spin_components.train_epoch.step",
    "spin_components.training.torch_backend",
    "spin_components.training.rank",
    "spin_components.validate.step",
]
MOMENT = "FAULTS_MOMENT"
"""Names a file or folder; an attempt kills itself as soon as it is there."""
HOST = "FAULTS_HOST"
"""Environment variable: host name of an attempt."""
_CLONE_NEWUTS = 0x04000000
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The result of an attempt.

    Attributes:
        kind: `done`, `failed`, or `killed`.
        error: class name of the exception.
        message: its message; its traceback if it is not one of the project's exceptions.
        is_clear: whether it is one of the project's exceptions.
    """

    kind: str
    error: str = ""
    message: str = ""
    is_clear: bool = False


class Attempt:
    """A process that runs or resumes a run.

    Args:
        settings: tables by section.
        variables: environment variables.
        folder: of its log and its outcome.
        part_bytes: size of an upload's parts and of a download's requests.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        variables: Mapping[str, str],
        folder: Path,
        *,
        part_bytes: int = 192 << 10,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(list(folder.glob('*.log'))):03d}"
        self.log, self._outcome = folder / f"{name}.log", folder / f"{name}.json"
        variables = {"SPIN_ATTEMPT": uuid.uuid4().hex, **variables}
        arguments = (settings, dict(variables), str(self.log), str(self._outcome), part_bytes)
        self._process = _CONTEXT.Process(target=_work, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """Kill the process and its children, if it still runs."""
        try:
            parent = psutil.Process(self.pid)
            family = [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family)

    def wait(self) -> AttemptResult:
        """Wait for its end."""
        try:
            self._process.join()
        except BaseException as error:  # the test's time is up
            self.kill()
            error.add_note(self.log.read_text("utf-8")[-2000:])
            raise
        if not self._outcome.exists():
            return AttemptResult("killed")
        return AttemptResult(**json.loads(self._outcome.read_text("utf-8")))


def start_fork_server() -> None:
    """Start the process that attempts are forked from, with their imports; call it before the first attempt."""
    _CONTEXT.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        ensure_running()


def _work(settings: dict[str, Any], variables: dict[str, str], log: str, outcome: str, part_bytes: int) -> None:
    """Run in this process, with the output in a log and the outcome in a file."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(variables)
    sys.executable = variables.get(WARM, sys.executable)
    if MOMENT in variables:
        _die_at(Path(variables[MOMENT]))
    if HOST in variables:
        _move_to(variables[HOST])
    from spin_components.errors import SpinError
    from spin_components.runtime.process import configure_logging, die_with_parent
    from spin_components.settings.mistakes import parse_settings
    from spin_components.store import transfer
    from support.playing import play_anywhere

    transfer.PART_BYTES = transfer.RANGE_BYTES = part_bytes
    configure_logging()
    die_with_parent()
    try:
        play_anywhere(parse_settings(settings, source="the test"))
        result = AttemptResult("done")
    except SpinError as error:
        result = AttemptResult("failed", type(error).__name__, str(error), is_clear=True)
    except BaseException as error:
        result = AttemptResult("failed", type(error).__name__, traceback.format_exc())
    staging = Path(f"{outcome}.part")
    staging.write_text(json.dumps(asdict(result)), encoding="utf-8")
    staging.replace(outcome)
    os._exit(0)


def _die_at(moment: Path) -> None:
    """Kill this process and what it starts at the first audited call after a file has appeared."""

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.killpg":  # this function's own call is audited too
            return
        if event.startswith(("open", "os.")) and moment.exists():
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(look)


def _move_to(host: str) -> None:
    """Change the host name of this process and its children."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUTS):
        raise OSError(ctypes.get_errno(), "the host name of a process cannot be changed here")
    socket.sethostname(host)
