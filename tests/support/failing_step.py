"""A step that ends in a given way, for tests of what supervises steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from spin_components import errors
from spin_components.runtime.signals import Interrupted
from spin_components.runtime.step import Step


def step(run_uri: str, hows: list[str], iteration: int) -> str:
    """End in the way that `hows` names for this try."""
    tries = Path(run_uri, "tries")
    number = len(tries.read_bytes()) if tries.exists() else 0
    tries.write_bytes(b"x" * (number + 1))
    how = hows[min(number, len(hows) - 1)]
    with Step.begin("failing-step", run_uri, iteration=iteration) as running:
        name, colon, message = how.partition(": ")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit 2":
            raise SystemExit(2)
        if how == "leaves a process":
            Path(run_uri, "left").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
            raise errors.EngineError("a rank died")
        if how == "waits":
            try:
                os.write(1, b"at work\n")
                time.sleep(600)
            except Interrupted:
                os.write(1, b"ended cleanly\n")
                raise
        if how == "scores":
            paths = {"child": "self", "parent": str(os.getppid())}
            scores = {who: int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for who, pid in paths.items()}
            return json.dumps(scores)
        if colon:
            kinds = {"RuntimeError": RuntimeError, "ValueError": ValueError}
            raise kinds[name](message) if name in kinds else getattr(errors, name)(message)
        return f"done by {running.attempt}"
