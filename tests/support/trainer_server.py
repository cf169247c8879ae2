"""A Kubernetes API of one namespace with TrainJobs, whose pods are real processes on this machine.

It serves the requests of train-epoch with documented JSON, and acts like Kubeflow Trainer: one process a node, with
the rendezvous in `PET_` variables, its log stored, and its exit reported as the job's condition.
"""

from __future__ import annotations

import base64
import json
import os
import re
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
    """A process and its log; `stuck` is the reason why it cannot be scheduled.

    Attributes:
        last: exit code of the container before it was restarted in place; None where it was not.
        previous: the log of that container.
        is_leaving: whether its job is gone; the pod ends after it.
    """

    name: str
    index: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    stuck: str = ""
    last: int | None = None
    num_restarts: int = 0
    previous: bytes = b""
    is_leaving: bool = False

    @property
    def exit_code(self) -> int | None:
        return self.process.poll() if self.process else None

    def described(self, job: str) -> dict[str, Any]:
        """The pod as the API returns it."""
        code = self.exit_code
        phase = "Pending" if not self.process else "Running" if code is None else "Failed" if code else "Succeeded"
        ended = {"terminated": _ended(code)} if code is not None else None
        state = ended or ({"running": {}} if self.process else {"waiting": {}})
        scheduled = {"type": "PodScheduled", "status": "False" if self.stuck else "True", "message": self.stuck}
        labels = {"jobset.sigs.k8s.io/jobset-name": job, "batch.kubernetes.io/job-completion-index": str(self.index)}
        status = {
            "name": "node",
            "state": state,
            "lastState": {} if self.last is None else {"terminated": _ended(self.last)},
            "image": "",
            "imageID": "",
            "ready": False,
            "restartCount": self.num_restarts,
        }
        leaving = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if self.is_leaving else {}
        return {
            "metadata": {"name": self.name, "namespace": NAMESPACE, "labels": labels, **leaving},
            "status": {"phase": phase, "conditions": [scheduled], "containerStatuses": [status]},
        }

    def end(self, number: signal.Signals) -> None:
        """Send a signal to the running process."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, number)


def _ended(code: int) -> dict[str, Any]:
    return {
        "exitCode": abs(code),
        "reason": "OOMKilled" if code == -9 else "Error" if code else "Completed",
        "finishedAt": "2026-01-01T00:00:00Z",
    }


@dataclass
class Job:
    """A TrainJob and its pods."""

    body: dict[str, Any]
    pods: list[Pod] = field(default_factory=list)
    port: int = 0

    def described(self) -> dict[str, Any]:
        """The job with its condition, as the API returns it."""
        codes = [pod.exit_code for pod in self.pods]
        conditions = []
        if any(codes):
            message = f"jobset failed due to one or more job failures (first failed job: {self.name}-node-0)"
            conditions = [{"type": "Failed", "status": "True", "reason": "FailedJobs", "message": message}]
        elif codes and all(code == 0 for code in codes):
            conditions = [{"type": "Complete", "status": "True", "reason": "JobsCompleted", "message": ""}]
        return {**self.body, "status": {"conditions": conditions}}

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    def end(self) -> None:
        """Kill the running pods."""
        for pod in self.pods:
            pod.end(signal.SIGKILL)
            if pod.process:
                pod.process.wait()


class TrainerServer:
    """The API server; use as a context manager.

    Attributes:
        jobs: by name.
        created, deleted: bodies and names of the jobs, in order.
        refuse: called with method and path; returns status and message of a refusal, or None.
        looks: number of reads of a job.
        stuck: reason why pods cannot be scheduled; empty for none.
        restarts: how often the runtime restarts a failed container in place; Trainer's own does 6 times.
        leaving: pods whose job is gone, and which have not ended.
        most_at_once: largest number of running pods of one job's name.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.refuse: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
        self.looks = 0
        self.stuck = ""
        self.restarts = 0
        self.leaving: list[tuple[str, Pod]] = []
        self.most_at_once = 0
        self._lock = threading.RLock()
        self._folder = Path(tempfile.mkdtemp(prefix="spin-trainer-"))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    def __enter__(self) -> TrainerServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *ended: object) -> None:
        for job in self.jobs.values():
            job.end()
        for _, pod in self.leaving:
            pod.end(signal.SIGKILL)
            if pod.process:
                pod.process.wait()
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
        self.jobs[name] = job = Job(body, port=_free_port())
        self._fill(job)
        return True

    def _fill(self, job: Job) -> None:
        """Start the pods of a job."""
        trainer = job.body["spec"]["trainer"]
        job.pods = []
        for index in range(trainer["numNodes"]):
            number = sum(1 for _ in self._folder.glob("*.log"))
            pod = Pod(f"{job.name}-node-0-{index}", index, self._folder / f"{job.name}-{index}-{number}.log")
            pod.log.touch()
            pod.stuck = self.stuck
            if not self.stuck:
                pod.process = self._started(trainer, pod, job.port)
            job.pods.append(pod)
        running = sum(pod.exit_code is None for left, pod in self.leaving if left == job.name)
        self.most_at_once = max(self.most_at_once, running + len(job.pods))

    def schedule(self) -> None:
        """Start the pods that could not be scheduled so far."""
        with self._lock:
            self.stuck = ""
            for job in self.jobs.values():
                for pod in job.pods:
                    if pod.stuck:
                        pod.stuck = ""
                        pod.process = self._started(job.body["spec"]["trainer"], pod, job.port)

    def remove(self, name: str, policy: str) -> bool:
        """Delete a job; returns False if it does not exist.

        Its pods get SIGTERM and outlive it. Trainer 2.3 makes the pods of a job anew that is deleted in the foreground.
        """
        if name not in self.jobs:
            return False
        self.deleted.append(name)
        job = self.jobs[name]
        for pod in job.pods:
            if pod.process:
                pod.is_leaving = True
                pod.end(signal.SIGTERM)
                self.leaving.append((name, pod))
        if policy == "Foreground":
            job.body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self._fill(job)
        else:
            del self.jobs[name]
        return True

    def look(self) -> None:
        """Do what the cluster does on its own: forget pods that have ended, restart containers that failed."""
        self.leaving = [(name, pod) for name, pod in self.leaving if pod.exit_code is None]
        for job in self.jobs.values():
            for pod in job.pods:
                if pod.exit_code and pod.num_restarts < self.restarts:
                    pod.last, pod.previous = pod.exit_code, pod.log.read_bytes()
                    pod.num_restarts += 1
                    pod.log.write_bytes(b"")
                    pod.process = self._started(job.body["spec"]["trainer"], pod, job.port)
                elif pod.exit_code and self.restarts:
                    for other in job.pods:
                        other.end(signal.SIGTERM)
                        self.leaving.append((job.name, other))
                    job.pods = []  # at the end, the shipped runtime's pods and their logs are gone
                    break

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
                with server._lock:
                    server.look()
                if refusal := server.refuse(method, address.path) or _invalid(method, body):
                    self._fail(*refusal)
                elif address.path.startswith(JOBS):
                    policy = parse_qs(address.query).get("propagationPolicy", ["Background"])[0]
                    self._job(method, address.path.removeprefix(JOBS).strip("/"), body, policy)
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

            def do_PATCH(self) -> None:
                self._serve("PATCH")

            def _job(self, method: str, name: str, body: dict[str, Any], policy: str) -> None:
                if method == "POST":
                    if server.add(body):
                        self._say(201, body)
                    else:
                        self._fail(409, "already exists")
                elif method == "DELETE" and server.remove(name, policy):
                    self._say(200, {"kind": "Status", "status": "Success"})
                elif method == "PATCH" and name in server.jobs:
                    server.jobs[name].body["metadata"] |= body["metadata"]
                    self._say(200, server.jobs[name].described())
                elif method == "GET" and name in server.jobs:
                    server.looks += 1
                    self._say(200, server.jobs[name].described())
                else:
                    self._fail(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')

            def _pods(self, job: str) -> None:
                pods = list(server.jobs[job].pods if job in server.jobs else [])
                pods += [pod for name, pod in server.leaving if name == job]
                self._say(200, {"kind": "PodList", "metadata": {}, "items": [pod.described(job) for pod in pods]})

            def _log(self, name: str, query: dict[str, list[str]]) -> None:
                pods = [pod for job in server.jobs.values() for pod in job.pods] + [pod for _, pod in server.leaving]
                pod = next((pod for pod in pods if pod.name == name), None)
                if pod is None:
                    self._fail(404, f'pods "{name}" not found')
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Connection", "close")
                self.end_headers()
                if "follow" not in query:
                    content = pod.previous if "previous" in query else pod.log.read_bytes()
                    lines = content.splitlines(keepends=True)
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


def _invalid(method: str, body: dict[str, Any]) -> tuple[int, str] | None:
    """What Trainer's webhook refuses of a job, in its words."""
    if method != "POST":
        return None
    for patch in body["spec"]["runtimePatches"]:
        manager = patch["manager"]
        if not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+/.+", manager):
            record = json.loads((Path(__file__).parent / "records/refusal-manager.json").read_text("utf-8"))
            return record["code"], record["message"].replace('"spin-pipelines"', f'"{manager}"')
    if any(len(argument) > 65_536 for argument in body["spec"]["trainer"]["args"]):
        return 422, "spec.trainer.args[0]: Too long: may not be more than 65536 bytes"
    return None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
