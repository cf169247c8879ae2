"""A run in a process of its own that kills itself inside an epoch.

`python -m support.killed_run STEP EPOCH DONE` plays a run whose settings are JSON on standard input, until that epoch
of a step has been saved after `DONE` of its updates or later.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from spin_components.record.events import EventLog
from spin_components.settings.settings import Settings
from support.playing import play_anywhere


def play_until_saved(settings: Settings, step: str, epoch: int, done: int) -> None:
    """Play a run in a process that kills itself as it records a save."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(
        [sys.executable, "-m", "support.killed_run", step, str(epoch), str(done)],
        input=settings.model_dump_json(include=set(Settings.model_fields)),
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert ended.returncode == -signal.SIGKILL


def main(step: str, epoch: int, done: int) -> None:
    """Play the run of the settings on standard input."""
    write = EventLog.write

    def write_and_die(log: EventLog, kind: str, **fields: Any) -> None:
        write(log, kind, **fields)
        place = (log.labels["step"], log.labels.get("epoch"))
        if kind == "save" and place == (step, epoch) and fields["done"] >= done:
            os.kill(os.getpid(), signal.SIGKILL)

    EventLog.write = write_and_die  # type: ignore[method-assign, assignment]
    play_anywhere(Settings.model_validate_json(sys.stdin.read()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
