"""Identity of a process, so that another one on the same machine sees whether it still runs."""

from __future__ import annotations

import socket
from functools import cache
from pathlib import Path


@cache
def this_host() -> str:
    """Return the name of this machine or pod with the id of its boot."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text('ascii').strip() if boot.exists() else ''}"


@cache
def pid_namespace() -> str:
    """Return the id of the namespace in which this process's pids have a meaning; empty if it cannot be read.

    Pods in their host's network have its name and its boot id, and pids of their own.
    """
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def identity(pid: int) -> str:
    """Return a process's pid and start time (pids are reused); empty if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    if fields[0] in "ZX":  # zombie or dead
        return ""
    return f"{pid}:{fields[19]}"  # field 22 of proc(5): start time in clock ticks since boot


def is_alive(process: str) -> bool:
    """Whether the process with an `identity` of this namespace still runs."""
    pid = process.partition(":")[0]
    return pid.isdigit() and process == identity(int(pid))
