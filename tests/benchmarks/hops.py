"""How far it is from `spin-pipeline run` to a step's function: the functions and processes that a debugger shows.

    python tests/benchmarks/hops.py [--until generate.step.generate_shard] [--set section.key=value ...]

A run of tiny.toml whose processes record, by Python's audit events, their stack wherever they start a process, fork or
connect to a local socket, and where the step's function has been entered. Counted are this project's functions, module
bodies left out, and the boundaries between processes; the first, `cli.main`, is where one starts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

RECORDER = """
import json, os, sys
_KINDS = ("subprocess.Popen", "os.fork", "socket.connect", "open")
_PARTS = ("/spin_pipeline/", "/spin_components/", "ephemeral_component.py")

def _own(frame):
    stack = []
    while frame:
        code = frame.f_code
        if code.co_name != "<module>" and any(part in code.co_filename for part in _PARTS):
            name = code.co_filename.rpartition("/components/")[2].rpartition("/pipeline/")[2]
            stack.append(f"{name.removesuffix('.py').replace('/', '.')}.{code.co_name}".rpartition("/")[2])
        frame = frame.f_back
    return stack[::-1]

_seen = set()

def _record(kind, arguments):
    if kind not in _KINDS or (kind == "socket.connect" and not isinstance(arguments[1], str)):
        return
    stack = _own(sys._getframe(1))
    if kind == "open":
        if not any(name.endswith(os.environ["SPIN_HOPS_UNTIL"]) for name in stack) or os.getpid() in _seen:
            return
        _seen.add(os.getpid())
    record = {"kind": kind, "pid": os.getpid(), "parent": os.getppid(), "stack": stack}
    descriptor = os.open(os.environ["SPIN_HOPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (json.dumps(record) + "\\n").encode())
    os.close(descriptor)

sys.addaudithook(_record)
"""


def main() -> None:
    """Run, and print the way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--until", default="generate.step.generate_shard")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        records = Path(name, "records.jsonl")
        Path(name, "sitecustomize.py").write_text(RECORDER, encoding="utf-8")
        path = os.pathsep.join([name, os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "SPIN_HOPS": str(records), "SPIN_HOPS_UNTIL": options.until}
        command = [sys.executable, "-m", "spin_pipeline.cli", "run", "--config", "tiny", "--run-uri", f"{name}/run"]
        command += [part for override in options.overrides for part in ("--set", override)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        found: list[dict[str, Any]] = []
        while process.poll() is None and not any(record["kind"] == "open" for record in found):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            lines = records.read_text("utf-8").splitlines() if records.exists() else []
            found = [json.loads(line) for line in lines]
        process.terminate()
        process.wait()
    for record in found:
        sys.stdout.write(f"{record['kind']:18}{record['parent']:>8}{record['pid']:>8}  {' > '.join(record['stack'])}\n")


if __name__ == "__main__":
    main()
