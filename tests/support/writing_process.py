"""A process that holds the lease on a run and writes to it, one command a line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from spin_components.errors import SpinError
from spin_components.store.lease_holder import LeaseHolder
from spin_components.store.open import open_run

SHIFT = "SPIN_TEST_SHIFT_S"
"""Environment variable: seconds by which the process's clock is ahead."""


class WritingProcess:
    """Starts the process; each method returns what it answers: "ok", or the class and the message of an error.

    Args:
        run_uri: the run.
        owner: id of the attempt.
        label: of the step.
        variables: environment variables.
        prefix: of the command, e.g. `unshare` and its options.
    """

    def __init__(
        self,
        run_uri: str,
        owner: str,
        label: str = "step",
        *,
        variables: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        environment = {**os.environ, **(variables or {})}
        commands, answers = os.pipe(), os.pipe()
        if prefix:
            folders = [str(Path(__file__).parents[2] / name) for name in ("pipeline", "components")]
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [*prefix, sys.executable, __file__, run_uri, owner, label],
                stdin=commands[0],
                stdout=answers[1],
                env={**environment, "PYTHONPATH": os.pathsep.join(folders)},
            )
            self.pid = self._process.pid
        else:  # what it imports is imported here already
            self._process = None
            self.pid = os.fork()
            if not self.pid:
                try:
                    os.close(commands[1])
                    os.environ.update(environment)
                    _serve(run_uri, owner, label, os.fdopen(commands[0]), os.fdopen(answers[1], "w"))
                finally:
                    os._exit(0)
        os.close(commands[0])
        os.close(answers[1])
        self._commands, self._answers = os.fdopen(commands[1], "w"), os.fdopen(answers[0])
        self.answer()  # it has started

    def tell(self, *words: str) -> None:
        """Send a command without waiting for its answer."""
        self._commands.write(json.dumps(words) + "\n")
        self._commands.flush()

    def answer(self) -> str:
        """Wait for the next answer; empty if the process has ended."""
        return self._answers.readline().strip()

    def do(self, *words: str) -> str:
        """Send a command and return its answer."""
        self.tell(*words)
        return self.answer()

    def stop(self) -> None:
        """Stop the process, as a frozen machine would be."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        """Let the stopped process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        elif self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        self._commands.close()
        self._answers.close()

    def __enter__(self) -> WritingProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


def _serve(run_uri: str, owner: str, label: str, commands: TextIO, answers: TextIO) -> None:
    shift_s, now = float(os.environ.get(SHIFT, "0")), time.time
    time.time = lambda: now() + shift_s
    holder: Any = None
    answers.write("started\n")
    answers.flush()
    with open_run(run_uri) as run:
        for line in commands:
            try:
                match json.loads(line):
                    case ["take over"]:
                        holder = LeaseHolder(run, owner, take_over=True, label=label)
                        run.guard = holder.check
                    case ["join"]:
                        holder = LeaseHolder(run, owner, take_over=False, label=label)
                        run.guard = holder.check
                    case ["write", key, text]:
                        run.write_json(key, {"text": text})
                    case ["stage", key, text]:
                        with run.staged(key) as staged:
                            staged.path.write_text(text, "utf-8")
                    case ["delete", key]:
                        run.delete(key)
                    case ["die in deletion", key]:
                        _die_at_removal()
                        run.delete(key)
                    case ["fail"]:
                        holder.close(is_last=True, with_others=False)
                    case ["end"]:
                        holder.close()
                answer = "ok"
            except SpinError as error:
                answer = f"{type(error).__name__}: {error}"
            answers.write(f"{answer}\n")
            answers.flush()


def _die_at_removal(after: int = 2) -> None:
    """Kill this process in the removal of its third file."""
    removed = 0

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal removed
        if event == "os.remove":
            removed += 1
            if removed > after:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], sys.argv[3], sys.stdin, sys.stdout)
