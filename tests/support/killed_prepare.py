"""Attempts at `prepare`, each in a process of its own that kills itself before one of its writes.

`python -m support.killed_prepare URI=NUMBER ...` reads settings as JSON from standard input and makes one attempt after
another at the runs of these addresses: the process kills itself before its write of that number (from 1) below the
run's `data/`; 0 lets it end. For each attempt it prints the exit code, as of `os.waitstatus_to_exitcode`, and the
number of writes that the process began.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import minio  # noqa: F401 - imported before the forks
import pyarrow.parquet  # noqa: F401

from spin_components.model.loading import import_generation
from spin_components.prepare import rendered_parts, rendering, step
from spin_components.settings.settings import Settings
from spin_components.store.bucket import Bucket

PART_TOKENS, BATCH_RECORDS = 200, 4
"""Sizes that give small data several parts."""
_PR_SET_PDEATHSIG = 1


def attempt_prepare(settings: Settings, attempts: Sequence[tuple[str, int]]) -> list[tuple[int, int]]:
    """Make attempts at `prepare`; returns the exit code and the number of writes of each.

    Args:
        settings: of all, but for the run's address.
        attempts: the run's address, and the number of the write before which the process kills itself; 0 for none.
    """
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    output = subprocess.run(
        [sys.executable, "-m", "support.killed_prepare", *(f"{uri}={number}" for uri, number in attempts)],
        input=settings.model_dump_json(include=set(Settings.model_fields)),
        text=True,
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    ).stdout
    return [(int(code), int(number)) for code, number in map(str.split, output.splitlines())]


class _Writes:
    """Counts writes below `data/` in a pipe, and kills the process before one of them."""

    def __init__(self, fatal: int, tally: int) -> None:
        self._fatal, self._tally, self._number = fatal, tally, 0
        put, delete = Bucket.put, Bucket.delete

        def put_or_die(bucket: Bucket, key: str, *arguments: Any, **options: Any) -> None:
            self.note(key)
            put(bucket, key, *arguments, **options)

        def delete_or_die(bucket: Bucket, keys: Any) -> None:
            for key in (keys := list(keys)):
                self.note(key)
            delete(bucket, keys)

        Bucket.put = put_or_die  # type: ignore[method-assign, assignment]
        Bucket.delete = delete_or_die  # type: ignore[method-assign, assignment]
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename":
            paths = [os.fsdecode(path) for path in arguments[:2]]
            if "/views/" not in paths[1] and "/files/" not in paths[1]:
                self.note(paths[1] if "/data/" in paths[1] else paths[0])

    def note(self, path: str) -> None:
        if "/data/" not in path or path.endswith(".part"):
            return
        self._number += 1
        os.write(self._tally, b"x")
        if self._number == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def _attempt(settings: Settings, fatal: int) -> tuple[int, int]:
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        code = 1
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a test that is ended leaves nothing behind
        try:
            _Writes(fatal, writing)
            compiled = {"max_iterations": 1, "max_epochs": [1], "shards": settings.generation.shards, "nodes": 1}
            step.prepare(settings.run.uri, settings.model_dump(mode="json"), compiled)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as tally:
        num_writes = len(tally.read())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), num_writes


def main() -> None:
    """Make the attempts of the command line."""
    rendered_parts.PART_TOKENS = PART_TOKENS
    rendering._BATCH_RECORDS = BATCH_RECORDS
    import_generation()
    values = json.load(sys.stdin)
    for uri, _, number in (attempt.rpartition("=") for attempt in sys.argv[1:]):
        values["run"]["uri"] = uri
        sys.stdout.write(" ".join(map(str, _attempt(Settings.model_validate(values), int(number)))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
