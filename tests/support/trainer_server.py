"""A Kubernetes API of one namespace with TrainJobs, whose pods are real processes on this machine.

It serves the requests of train-epoch with documented JSON, and acts like Kubeflow Trainer: one process a node, with
the rendezvous in `PET_` variables, its log stored, and its exit reported as the job's condition.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from spin_components.store.base import remove

NAMESPACE = "team"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@dataclass
class Pod:
    """A process and its log; `stuck` is the reason why it cannot be scheduled."""

    name: str
    index: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    stuck: str = ""

    @property
    def exit_code(self) -> int | None:
        return self.process.poll() if self.process else None

    def described(self, job: str) -> dict[str, Any]:
        """The pod as the API returns it."""
        code = self.exit_code
        phase = "Pending" if not self.process else "Running" if code is None else "Failed" if code else "Succeeded"
        ended = {"exitCode": abs(code), "reason": "OOMKilled" if code == -9 else "Error"} if code is not None else None
        state = {"terminated": ended} if ended else {"running": {}} if self.process else {"waiting": {}}
        scheduled = {"type": "PodScheduled", "status": "False" if self.stuck else "True", "message": self.stuck}
        labels = {"jobset.sigs.k8s.io/jobset-name": job, "batch.kubernetes.io/job-completion-index": str(self.index)}
        status = {"name": "node", "state": state, "image": "", "imageID": "", "ready": False, "restartCount": 0}
        return {
            "metadata": {"name": self.name, "namespace": NAMESPACE, "labels": labels},
            "status": {"phase": phase, "conditions": [scheduled], "containerStatuses": [status]},
        }


@dataclass
class Job:
    """A TrainJob and its pods."""

    body: dict[str, Any]
    pods: list[Pod] = field(default_factory=list)

    def described(self) -> dict[str, Any]:
        """The job with its condition, as the API returns it."""
        codes = [pod.exit_code for pod in self.pods]
        conditions = []
        if any(codes):
            conditions = [{"type": "Failed", "status": "True", "reason": "JobsFailed", "message": "a node failed"}]
        elif codes and all(code == 0 for code in codes):
            conditions = [{"type": "Complete", "status": "True", "reason": "JobsCompleted", "message": ""}]
        return {**self.body, "status": {"conditions": conditions}}

    def end(self) -> None:
        """Kill the running pods."""
        for pod in self.pods:
            if pod.process and pod.process.poll() is None:
                os.killpg(pod.process.pid, signal.SIGKILL)
                pod.process.wait()


class TrainerServer:
    """The API server; use as a context manager.

    Attributes:
        jobs: by name.
        created, deleted: bodies and names of the jobs, in order.
        refuse: called with method and path; returns status and message of a refusal, or None.
        looks: number of reads of a job.
        stuck: reason why pods cannot be scheduled; empty for none.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.refuse: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
        self.looks = 0
        self.stuck = ""
        self._folder = Path(tempfile.mkdtemp(prefix="spin-trainer-"))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    def __enter__(self) -> TrainerServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *ended: object) -> None:
        for job in self.jobs.values():
            job.end()
        self._server.shutdown()
        self._server.server_close()
        remove(self._folder)

    def variables(self) -> dict[str, str]:
        """Environment variables of a step's pod: kubeconfig and service account."""
        account = self._folder / "account"
        account.mkdir(exist_ok=True)
        claims = {
            "kubernetes.io": {
                "namespace": NAMESPACE,
                "serviceaccount": {"name": "pipeline-runner"},
                "pod": {"name": "step-1", "uid": "1-2-3"},
            }
        }
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        (account / "token").write_text(f"e30.{payload}.x", "ascii")
        (account / "namespace").write_text(NAMESPACE, "ascii")
        kubeconfig = self._folder / "kubeconfig.json"
        named = {"cluster": "here", "user": "me"}
        kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": named}],
                    "clusters": [{"name": "here", "cluster": {"server": self.address}}],
                    "users": [{"name": "me", "user": {}}],
                }
            ),
            "utf-8",
        )
        return {"KUBECONFIG": str(kubeconfig), "SPIN_SERVICE_ACCOUNT_FOLDER": str(account)}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, body: dict[str, Any]) -> bool:
        """Create a job and start its pods; returns False if the name is taken."""
        name = body["metadata"]["name"]
        if name in self.jobs:
            return False
        self.created.append(body)
        self.jobs[name] = job = Job(body)
        trainer = body["spec"]["trainer"]
        port = _free_port()
        for index in range(trainer["numNodes"]):
            pod = Pod(f"{name}-node-0-{index}", index, self._folder / f"{name}-{index}-{len(self.created)}.log")
            pod.log.touch()
            pod.stuck = self.stuck
            if not self.stuck:
                pod.process = self._started(trainer, pod, port)
            job.pods.append(pod)
        return True

    def remove(self, name: str) -> bool:
        """Delete a job and its pods; returns False if it does not exist."""
        if name not in self.jobs:
            return False
        self.deleted.append(name)
        self.jobs.pop(name).end()
        return True

    def _started(self, trainer: dict[str, Any], pod: Pod, port: int) -> subprocess.Popen[bytes]:
        meeting = {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": str(pod.index),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
        }
        given = {entry["name"]: entry["value"] for entry in trainer["env"]}
        assert trainer["command"][0] == "python3"
        command = [sys.executable, *trainer["command"][1:], *trainer["args"]]
        with pod.log.open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **meeting, **given}, start_new_session=True
            )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _say(self, status: int, value: dict[str, Any]) -> None:
                text = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def _fail(self, status: int, message: str) -> None:
                self._say(status, {"kind": "Status", "status": "Failure", "code": status, "message": message})

            def _serve(self, method: str) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                address = urlparse(self.path)
                if refusal := server.refuse(method, address.path):
                    self._fail(*refusal)
                elif address.path.startswith(JOBS):
                    self._job(method, address.path.removeprefix(JOBS).strip("/"), body)
                elif address.path == PODS:
                    self._pods(parse_qs(address.query)["labelSelector"][0].partition("=")[2])
                elif address.path.endswith("/log"):
                    self._log(address.path.split("/")[-2], parse_qs(address.query))
                else:
                    self._fail(404, f"no such path: {address.path}")

            def do_GET(self) -> None:
                self._serve("GET")

            def do_POST(self) -> None:
                self._serve("POST")

            def do_DELETE(self) -> None:
                self._serve("DELETE")

            def _job(self, method: str, name: str, body: dict[str, Any]) -> None:
                if method == "POST":
                    if server.add(body):
                        self._say(201, body)
                    else:
                        self._fail(409, "already exists")
                elif method == "DELETE" and server.remove(name):
                    self._say(200, {"kind": "Status", "status": "Success"})
                elif method == "GET" and name in server.jobs:
                    server.looks += 1
                    self._say(200, server.jobs[name].described())
                else:
                    self._fail(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')

            def _pods(self, job: str) -> None:
                pods = server.jobs[job].pods if job in server.jobs else []
                self._say(200, {"kind": "PodList", "metadata": {}, "items": [pod.described(job) for pod in pods]})

            def _log(self, name: str, query: dict[str, list[str]]) -> None:
                pod = next((pod for job in server.jobs.values() for pod in job.pods if pod.name == name), None)
                if pod is None:
                    self._fail(404, f'pods "{name}" not found')
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Connection", "close")
                self.end_headers()
                if "follow" not in query:
                    lines = pod.log.read_bytes().splitlines(keepends=True)
                    self.wfile.write(b"".join(lines[-int(query.get("tailLines", ["1000000"])[0]) :]))
                    return
                with pod.log.open("rb") as log:
                    number = 0
                    while True:
                        running = pod.exit_code is None
                        for line in log.readlines():
                            number += 1
                            self.wfile.write(f"2026-01-01T00:00:00.{number:09d}Z ".encode() + line)
                        if not running:
                            return
                        time.sleep(0.05)

        return Handler


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
