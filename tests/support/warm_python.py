"""A Python interpreter whose modules are already imported: a server that forks for each start of a program.

torchrun and its ranks are started with `sys.executable`; each imports torch, and a rank DeepSpeed and transformers too.
`WarmPython.executable` stands in for it: `EXECUTABLE [-u] (-m MODULE | SCRIPT) ARGUMENT ...` runs the program in a fork
of the server, as a process of its own with the caller's environment, folder, open files and signals, which ends with
the caller. Any other command line runs a new Python.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import inspect
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from spin_components.runtime.process import ending
from spin_pipeline.deploy.caller_names import stack_without_source

PRELOADED = [
    "deepspeed",
    "deepspeed.ops.adam",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # by deepspeed.initialize, with torch's compiler: 2 s
    "kfp.local",
    "minio",
    "pandas",  # by pyarrow
    "pyarrow.dataset",
    "pyarrow.parquet",
    "torch.distributed.run",
    "transformers.models.llama.modeling_llama",
    "spin_components.checkpoint.step",
    "spin_components.generate.step",
    "spin_components.engine.transformers_engine",
    "spin_components.prepare.step",
    "spin_components.ref_logprob.step",
    "spin_components.store.remote",
    "spin_components.training.deepspeed_backend",
    "spin_components.training.rank",
    "spin_components.train_epoch.step",
    "spin_components.training.torch_backend",
    "spin_components.validate.step",
    "spin_pipeline.dag",
]
_PR_SET_PDEATHSIG = 1
_CLIENT = """\
#!{python} -SE
import json, os, signal, socket, sys
arguments = sys.argv[2:] if sys.argv[1:2] == ["-u"] else sys.argv[1:]
if arguments[:1] != ["-m"] and not arguments[0].endswith(".py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
kept = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
kept = [number for number in kept if os.path.exists(f"/proc/self/fd/{{number}}") and os.get_inheritable(number)]
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: server.sendall(bytes([number])))
numbers = [0, 1, 2, *kept]
order = {{"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "files": numbers}}
body = json.dumps(order).encode()
socket.send_fds(server, [len(body).to_bytes(4, "big")], numbers)
server.sendall(body)
server.settimeout(0.5)
parent, answer = os.getppid(), None
while answer is None and os.getppid() == parent:
    try:
        answer = server.recv(2)
    except TimeoutError:
        pass
    except OSError:  # the server is gone
        break
code = int.from_bytes(answer, "big", signed=True) if answer else 1
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class WarmPython:
    """The server and its executable, until `close`.

    Attributes:
        executable: stands in for `sys.executable`.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")  # a socket's path has at most 107 bytes
        address = str(Path(self._folder.name, "socket"))
        self.executable = Path(self._folder.name, "python")
        self.executable.write_text(_CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
        self.executable.chmod(0o755)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen()  # programs that are started while the server imports wait
        command = [sys.executable, "-m", "support.warm_python", str(listener.fileno()), str(self.executable)]
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        variables = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }
        self._server = subprocess.Popen(
            command, pass_fds=[listener.fileno()], stdin=subprocess.PIPE, env={**os.environ, **variables}
        )
        listener.close()

    def close(self) -> None:
        """End the server, and what runs in forks of it."""
        self._server.communicate()
        self._folder.cleanup()


def serve(listener: socket.socket, executable: str) -> None:
    """Fork for each order, pass signals on to the forks and their exit codes back, until standard input ends."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                for fork in selector.get_map().values():
                    if isinstance(fork.fileobj, int):
                        signal.pidfd_send_signal(fork.fileobj, signal.SIGKILL)
                return
            if key.fileobj is listener:
                client, _ = listener.accept()
                pid = _start(client, listener, executable)
                ended = os.pidfd_open(pid)
                selector.register(client, selectors.EVENT_READ, (pid, ended))
                selector.register(ended, selectors.EVENT_READ, (pid, client))
            elif isinstance(key.fileobj, socket.socket):
                pid, ended = key.data
                numbers = key.fileobj.recv(16)
                for number in numbers or [signal.SIGKILL]:
                    signal.pidfd_send_signal(ended, number)
                if not numbers:  # the caller is gone
                    selector.unregister(key.fileobj)
            else:
                _finish(selector, key.fd, *key.data)


def _finish(selector: selectors.BaseSelector, ended: int, pid: int, client: socket.socket) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    selector.unregister(ended)
    if client in selector.get_map():
        selector.unregister(client)
        client.sendall(code.to_bytes(2, "big", signed=True))
    client.close()
    os.close(ended)


def _start(client: socket.socket, listener: socket.socket, executable: str) -> int:
    """Run a client's program in a fork; returns its pid."""
    head, files, *_ = socket.recv_fds(client, 4, 64)
    order: dict[str, Any] = json.loads(client.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
    if pid := os.fork():
        for file in files:
            os.close(file)
        return pid
    listener.close()
    client.close()
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _place(files, order["files"])
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    _add_paths()
    sys.executable = executable
    with ending():
        try:
            _run(order["arguments"])
        finally:
            atexit._run_exitfuncs()
    raise AssertionError("not reached")


def _place(files: list[int], numbers: list[int]) -> None:
    """Give each file the number that it has in the client."""
    first = max([*files, *numbers]) + 1
    for index, file in enumerate(files):  # away from numbers that are still to be given
        os.dup2(file, first + index)
        os.close(file)
    for index, number in enumerate(numbers):
        os.dup2(first + index, number)
        os.close(first + index)


def _add_paths() -> None:
    """Take over what a new Python takes from PYTHONPATH: folders to import from, and `sitecustomize`."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.path[:0] = paths
    spec = PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


def _run(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        if not os.environ.get("PYTHONSAFEPATH"):
            sys.path.insert(0, "")
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def main() -> None:
    """Import, then serve."""
    for name in PRELOADED:
        importlib.import_module(name)
    for name in ("torch.distributed.run", "spin_components.training.rank"):
        del sys.modules[name]  # they are run as programs; what they import stays
    inspect.stack = stack_without_source  # torchrun has the source of all frames looked up for each of its events: 3 s
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])


if __name__ == "__main__":
    main()
