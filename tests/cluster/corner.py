"""A corner of a cluster for one test: commands typed, runs asked for, waiting."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_pipeline.cluster.client import Api
from spin_pipeline.cluster.package import find_experiment

TIMEOUT_S = float(os.environ.get("SPIN_TEST_TIMEOUT_S", "1800"))
SPIN = [sys.executable, "-m", "spin_pipeline.cli"]

# what a small node can hold; the tiny model needs a few hundred MiB beside torch itself
SMALL = {
    "placement.generate.cpu": "1",
    "placement.generate.memory": "3Gi",
    "placement.train.cpu": "1",
    "placement.train.memory": "3Gi",
    "placement.score.cpu": "1",
    "placement.score.memory": "3Gi",
    "cluster.light.cpu": "1",
    "cluster.light.memory": "3Gi",
    "cluster.shm_gib": "1",
}


@dataclass(frozen=True)
class Cluster:
    """A cluster and a corner of it for one test.

    Attributes:
        api: of KFP.
        name: of this test's pipeline and experiment.
        folder: where its runs lie.
        cache: this machine's, for the test alone.
    """

    api: Api
    name: str
    folder: str
    cache: Path

    def arguments(self, command: str, run: str, *overrides: str) -> list[str]:
        """A command of `spin-pipeline` for a run of the tiny configuration."""
        settings = [f"run.name={self.name}", *(f"{key}={value}" for key, value in SMALL.items())]
        settings += [*os.environ.get("SPIN_TEST_SET", "").split(), *overrides]
        pairs = [part for setting in settings for part in ("--set", setting)]
        return [*SPIN, command, "--config", "tiny", "--run-uri", f"{self.folder}/{run}", *pairs]

    def start(self, arguments: list[str]) -> subprocess.Popen[str]:
        """Start a command."""
        environment = {**os.environ, "SPIN_CACHE_DIR": str(self.cache)}
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def run(self, arguments: list[str]) -> tuple[int, str]:
        """Run a command to its end: exit code and output."""
        process = self.start(arguments)
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
        return process.returncode, output

    def runs(self, **named: Any) -> list[Any]:
        """KFP's runs of this test, oldest first."""
        experiment = find_experiment(self.api, self.name)
        listing = self.api.client.runs.run_service_list_runs
        found = self.api.pages("listing runs", listing, "runs", experiment_id=experiment, **named) if experiment else []
        return sorted(found, key=lambda run: str(run.created_at))

    def state(self, run_id: str) -> str:
        """A run's state as KFP tells it."""
        return str(self.api.call("asking", self.api.client.runs.run_service_get_run, run_id).state)


def pod_namespace() -> str:
    """Where pods run."""
    return os.environ.get("SPIN_TEST_POD_NAMESPACE") or os.environ.get("KFP_NAMESPACE") or "kubeflow"


def eventually(what: str, find: Callable[[], Any], timeout_s: float = TIMEOUT_S, pause_s: float = 2.0) -> Any:
    """What `find` returns once it is something."""
    deadline = time.monotonic() + timeout_s
    while not (found := find()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(pause_s)
    return found
