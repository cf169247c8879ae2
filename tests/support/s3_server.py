"""A real S3 server, `nanio`, in a separate process: buckets are folders, objects are files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sysconfig
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

ACCESS_KEY = "spin-test-access-key"
SECRET_KEY = "spin-test-secret-key-that-must-not-leak"
BUCKET = "bucket"


class S3Server:
    """Listens on a loopback port; can be killed and restarted on the same port and data.

    Args:
        folder: of the buckets; `BUCKET` is created.
        environment: additional variables.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        (folder / BUCKET).mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of a client."""
        return {
            "S3_ENDPOINT": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }

    def start(self) -> None:
        """Start the server and wait until it listens."""
        command = [shutil.which("nanio", path=sysconfig.get_path("scripts")) or "nanio", "serve"]
        command += ["--data-dir", str(self.folder), "--host", "127.0.0.1", "--port", str(self.port)]
        keys = {"NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY}
        self._process = subprocess.Popen(
            [*command, "--no-access-log", "--log-level", "error"], env={**os.environ, **keys, **self._environment}
        )
        wait_for_port(self.port, self._process)

    def kill(self) -> None:
        """Kill the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def empty(self) -> None:
        """Delete all objects, and every bucket but `BUCKET`."""
        for bucket in self.folder.glob("[!.]*"):  # the server's own folder begins with a dot
            shutil.rmtree(bucket)
        (self.folder / BUCKET).mkdir()

    def path(self, key: str, bucket: str = BUCKET) -> Path:
        """The file of an object."""
        return self.folder / bucket / key

    def backdate(self, key: str, age_s: float) -> None:
        """Move the time of an object's last write back."""
        metadata = self.folder / BUCKET / ".nanio-meta" / f"{key}.json"
        written = datetime.now(UTC) - timedelta(seconds=age_s)
        metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "last_modified": written.isoformat()}))


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process listens on the port."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            assert process.poll() is None, "the S3 server ended as it was started"
            time.sleep(0.05)
