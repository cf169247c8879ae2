"""Attempts at a run, each in a process of its own that can be killed outright.

Importing torch takes seconds, so a fork server imports it once and forks for each attempt; nothing is computed
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

PRELOADED = [
    "pyarrow.dataset",
    "pyarrow.parquet",
    "torch",
    "deepspeed",
    "transformers.models.llama.modeling_llama",
    "tokenizers.trainers",
    "spin_components.checkpoint.step",
    "spin_components.generate.step",
    "spin_components.generate.transformers_engine",
    "spin_components.prepare.step",
    "spin_components.ref_logprob.step",
    "spin_components.store.remote",
    "spin_components.train_epoch.step",
    "spin_components.train_epoch.torch_backend",
    "spin_components.train_epoch.worker",
    "spin_components.validate.step",
]
MOMENT = "FAULTS_MOMENT"
"""Names a file or folder; an attempt kills itself as soon as it is there."""
HOST = "FAULTS_HOST"
"""Names the machine that an attempt is to believe it runs on."""
_CLONE_NEWUTS = 0x04000000
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        kind: `done`, `failed`, or `killed`.
        error: class of what was raised.
        message: what it says; for an error that is none of the project's own, its traceback.
        is_clear: whether it is one of the project's own errors.
    """

    kind: str
    error: str = ""
    message: str = ""
    is_clear: bool = False


class Attempt:
    """A process that plays a run from where it stands.

    Args:
        settings: as tables.
        variables: of its environment.
        folder: for its log and its outcome.
        part_bytes: size of a part of an upload, and of one request of a download.
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
        """End it and what it started, at once, if it still runs."""
        try:
            found = psutil.Process(self.pid)
            family = [found, *found.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family)

    def wait(self) -> Outcome:
        """Wait for its end."""
        try:
            self._process.join()
        except BaseException as error:  # the test's time is up
            self.kill()
            error.add_note(self.log.read_text("utf-8")[-2000:])
            raise
        if not self._outcome.exists():
            return Outcome("killed")
        return Outcome(**json.loads(self._outcome.read_text("utf-8")))


def start_fork_server() -> None:
    """Have attempts forked from a process that has imported what they need; to be called before the first of them."""
    _CONTEXT.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        ensure_running()


def _work(settings: dict[str, Any], variables: dict[str, str], log: str, outcome: str, part_bytes: int) -> None:
    """Play in this process, its output to a log, its outcome to a file."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(variables)
    if MOMENT in variables:
        _die_at(Path(variables[MOMENT]))
    if HOST in variables:
        _move_to(variables[HOST])
    from playing import play_anywhere
    from spin_components.errors import SpinError
    from spin_components.process import configure_logging, die_with_parent
    from spin_components.settings_errors import parse_settings
    from spin_components.store import transfer

    transfer.PART_BYTES = transfer.RANGE_BYTES = part_bytes
    configure_logging()
    die_with_parent()
    try:
        play_anywhere(parse_settings(settings, source="the test"))
        found = Outcome("done")
    except SpinError as error:
        found = Outcome("failed", type(error).__name__, str(error), is_clear=True)
    except BaseException as error:
        found = Outcome("failed", type(error).__name__, traceback.format_exc())
    staging = Path(f"{outcome}.part")
    staging.write_text(json.dumps(asdict(found)), encoding="utf-8")
    staging.replace(outcome)
    os._exit(0)


def _die_at(moment: Path) -> None:
    """Kill this process and what it starts at the first audited call after a file has appeared."""

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(("open", "os.")) and moment.exists():
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(look)


def _move_to(host: str) -> None:
    """Give this process, and what it starts, a host name of its own."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUTS):
        raise OSError(ctypes.get_errno(), "no host name of its own can be given to a process here")
    socket.sethostname(host)
