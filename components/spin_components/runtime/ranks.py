"""Ranks: processes of this machine that share a step's work, started by torchrun, with a device each.

`launch` runs `python -m MODULE JOB.json` once a rank, and `take_part` is what such a module does around its own work.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from spin_components import errors
from spin_components.errors import EngineError, SpinError
from spin_components.runtime.process import configure_logging, die_with_parent, end_process_group

logger = logging.getLogger(__name__)

ALONE = ("--standalone", "--local-addr=127.0.0.1")
"""Torchrun's arguments for ranks on one machine. Without the address they look up the host's name, which a pod or a
container may not resolve, and wait for each other for ever."""

ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
"""Variable by which torch's allocator grows segments of GPU memory: batches of changing lengths leave fewer holes."""

_LAUNCHER = "SPIN_LAUNCHER_PID"
"""Environment variable: the process that called `launch`. Torchrun, which is between it and the ranks, outlives it."""

_POLL_S = 0.5


def launch(
    module: str,
    job: BaseModel,
    ranks: int,
    *,
    where: str,
    meeting: Sequence[str] = ALONE,
    variables: Mapping[str, str] | None = None,
    report: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Run a module once a rank, and wait for all of them.

    Args:
        module: calls `take_part` or writes outcomes as it does.
        job: its argument, as JSON in a file.
        ranks: how many.
        where: what they work at, for errors.
        meeting: torchrun's rendezvous arguments; empty where its variables are set.
        variables: of the ranks' environment, where this process does not set them.
        report: called with the sum of what the ranks have done, when it changes.

    Returns: the ranks' outcomes in their order.

    Raises:
        SpinError: what the first rank to fail raised, or EngineError where one ended without an error.
    """
    with tempfile.TemporaryDirectory(prefix="spin-ranks-") as folder:
        path = Path(folder, "job.json")
        path.write_text(job.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(ranks)]
        environment = {"OMP_NUM_THREADS": "1", **(variables or {}), **os.environ, _LAUNCHER: str(os.getpid())}
        with subprocess.Popen([*command, "-m", module, str(path)], env=environment) as process:
            try:
                code = _wait(process, path.parent, report)
            except BaseException:
                process.kill()
                raise
        outcomes = [json.loads(outcome.read_text("utf-8")) for outcome in sorted(path.parent.glob("outcome-*.json"))]
    # others lose their connection to the rank that failed, and fail too
    for outcome in sorted(outcomes, key=lambda outcome: float(outcome["ended"])):
        if "error" in outcome:
            raise getattr(errors, outcome["error"])(outcome["message"])
    if code or len(outcomes) != ranks:
        raise EngineError(
            f"{where}: torchrun ended with code {code}; a rank ended without an error (out of memory?). "
            "Its output is above; what was saved is kept, and the same command resumes from it"
        )
    return outcomes


def _wait(process: subprocess.Popen[bytes], folder: Path, report: Callable[[int], None] | None) -> int:
    """Wait for torchrun, and report what its ranks have done."""
    reported = 0
    while True:
        try:
            return process.wait(None if report is None else _POLL_S)
        except subprocess.TimeoutExpired:
            done = sum(int(path.read_text("ascii") or 0) for path in folder.glob("done-*"))
            if report and done > reported:
                report(reported := done)


def take_part(job_path: Path, where: str, work: Callable[[Callable[[int], None]], dict[str, Any]]) -> None:
    """Do a rank's work and write its outcome beside the job; ends the process where it fails.

    Args:
        job_path: of the file that `launch` wrote.
        where: for errors.
        work: takes a function to call with the number that is done, and returns the outcome.
    """
    rank = int(os.environ["RANK"])
    progress = job_path.with_name(f"done-{rank}")
    outcome: dict[str, Any]
    try:
        outcome = work(lambda done: _write_whole(progress, str(done)))
    except Exception as error:
        logger.exception("rank %d failed", rank)
        known = isinstance(error, SpinError)
        outcome = {
            "error": type(error).__name__ if known else "EngineError",
            "message": str(error) if known else f"{where}, rank {rank}: {type(error).__name__}: {error}",
        }
    outcome["ended"] = time.monotonic()  # one clock for all processes of a machine
    job_path.with_name(f"outcome-{rank:05d}.json").write_text(json.dumps(outcome), encoding="utf-8")
    if "error" in outcome:
        os._exit(1)  # other ranks may wait within a collective: torchrun ends them


def take_cores(rank: int, ranks: int) -> None:
    """Restrict this process to its share of the cores, so that processes on a CPU do not wait for each other's."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        size = len(cores) // ranks
        if size:
            os.sched_setaffinity(0, cores[rank * size : (rank + 1) * size])


def take_gpus(rank: int, size: int) -> None:
    """Leave this process its own group of `size` GPUs; before torch looks for GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range((rank + 1) * size)]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[rank * size : (rank + 1) * size])


def leave_torchrun() -> None:
    """Remove torchrun's variables, by which an engine in this process would join the other ranks."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK")
    for name in (*names, "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC_")]:
        del os.environ[name]


@contextmanager
def one_at_a_time(job_path: Path) -> Iterator[None]:
    """Let one rank at a time into the block: each loads a whole model through the machine's memory."""
    with job_path.with_name("turn").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
        yield


def take_turns(job_path: Path, num: int) -> Iterator[int]:
    """Yield those of the numbers below `num` that this rank takes; each goes to the rank that is free first.

    Args:
        job_path: of the file that `launch` wrote.
        num: of pieces of work.
    """
    while True:
        with job_path.with_name("taken").open("a+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
            file.seek(0)
            number = len(file.read())
            file.write("." if number < num else "")
        if number >= num:
            return
        yield number


def _write_whole(path: Path, text: str) -> None:
    """Replace a file that another process may read at any time."""
    new = path.with_name(f"new-{path.name}")
    new.write_text(text, encoding="ascii")
    new.replace(path)


def _end_after(launcher: int) -> None:
    """End this process once the launcher has ended: killed, it cannot end its ranks, which would keep their devices."""
    try:
        if sys.platform == "linux":
            select.select([os.pidfd_open(launcher)], [], [])
        else:
            while True:
                os.kill(launcher, 0)
                time.sleep(_POLL_S)
    except ProcessLookupError:
        pass
    end_process_group()


def begin_rank() -> tuple[int, int]:
    """Prepare a process that torchrun started; returns its rank and the number of ranks."""
    configure_logging()
    die_with_parent()
    if launcher := os.environ.get(_LAUNCHER):
        threading.Thread(target=_end_after, args=[int(launcher)], name="die-with-launcher", daemon=True).start()
    rank = int(os.environ["RANK"])
    if rank:
        logging.getLogger().setLevel(logging.WARNING)
    return rank, int(os.environ["WORLD_SIZE"])
