"""A process that has imported torch already and forks for each step.

On one machine a run is a chain of short processes, and importing torch and transformers takes each of them several
seconds. A local run starts this server once; `process.perform` sends it the steps. The child that works is a fresh
fork every time, so that steps share nothing but imported code, and it ends when the caller goes away.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from spin_components.process import WARM_SERVER, call, die_with_parent, end_process_group

READY = "ready"


def request(address: str, target: str, attempt: str, arguments: dict[str, Any]) -> str:
    """Have the server at a socket address run a step, with this process's standard output and error.

    Returns: what the step returns.

    Raises:
        SystemExit: with the exit code of a step that failed.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        order = {"target": target, "attempt": attempt, "arguments": arguments, "folder": str(Path.cwd())}
        message = json.dumps(order).encode()
        sys.stdout.flush()
        sys.stderr.flush()
        socket.send_fds(connection, [struct.pack("!I", len(message))], [1, 2])
        connection.sendall(message)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    if not answer:
        sys.stderr.write(f"the process that ran {target} ended without an answer (killed, or out of memory)\n")
        raise SystemExit(1)
    outcome = json.loads(answer)
    if "exit_code" in outcome:
        raise SystemExit(outcome["exit_code"])
    return str(outcome["result"])


def serve(address: Path) -> None:
    """Listen at a socket path and fork for every request, until the parent process ends."""
    die_with_parent()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        _preload()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
        sys.stdout.write(READY + "\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _work(connection)
            connection.close()


def _preload() -> None:
    """Import what the model steps need; nothing is computed, so that no thread or device is open at the fork."""
    import minio
    import pyarrow.parquet
    import tenacity
    import torch

    from spin_components.modeling import import_generation

    import_generation()
    import transformers.models.llama.modeling_llama
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin

    del torch, transformers, pyarrow, minio, tenacity, AutoModelForCausalLM, AutoTokenizer, GenerationMixin


def _work(connection: socket.socket) -> None:
    """Do one request in this forked child, and end."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.pop(WARM_SERVER, None)
    head, descriptors, _, _ = socket.recv_fds(connection, 4, 2)
    (length,) = struct.unpack("!I", head)
    message = b""
    while len(message) < length:
        message += connection.recv(length - len(message))
    for descriptor, standard in zip(descriptors, (1, 2), strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    threading.Thread(target=_end_with_caller, args=(connection,), daemon=True).start()
    outcome = _outcome(json.loads(message))
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(json.dumps(outcome).encode())
    os._exit(0)


def _end_with_caller(connection: socket.socket) -> None:
    connection.recv(1)  # the caller sends nothing more: this returns when it is gone
    end_process_group()


def _outcome(message: dict[str, Any]) -> dict[str, Any]:
    try:
        os.chdir(message["folder"])
        return {"result": call(message["target"], message["attempt"], message["arguments"])}
    except SystemExit as error:
        return {"exit_code": error.code if isinstance(error.code, int) else 1}
    except BaseException:
        traceback.print_exc()
        return {"exit_code": 1}


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
