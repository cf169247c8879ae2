"""The product on a real cluster: run, killed, cancelled, resumed, scheduled. Its conftest says what it needs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from cluster.corner import SPIN, Cluster, eventually, pod_namespace
from spin_components.errors import SpinError
from spin_components.model.stored import model_files
from spin_components.record.events import read_events, read_repeats
from spin_components.store import layout
from spin_components.store.digests import verify_tree
from spin_components.store.open import open_run
from spin_pipeline.cluster.schedule import schedules
from spin_pipeline.runs.status import RunStatus, read_status

# ends the working process of a step, from within its container, as the kernel does where memory runs out
_KILL = """
import os, signal
executors = {}
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) != os.getpid():
        try:
            words = open(f"/proc/{name}/cmdline", "rb").read().split(bytes(1))
            parent = int(open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if b"kfp.dsl.executor_main" in words and b"python" in words[0]:
            executors[int(name)] = parent
for process, parent in executors.items():
    if parent in executors:
        os.kill(process, signal.SIGKILL)
        print("killed", process)
"""


def status_of(uri: str) -> RunStatus | None:
    """How a run stands; None before it has begun."""
    try:
        return read_status(uri)
    except SpinError:
        return None


def check_storage(uri: str) -> None:
    """Every iteration is published, and the best model is what its manifest says, byte for byte."""
    status = read_status(uri)
    assert status.state == "done", status
    assert [row.iteration for row in status.iterations] == [0, 1]
    assert status.best is not None
    assert status.base.val_loss is not None
    assert status.best.val_loss < status.base.val_loss
    with open_run(uri) as run:
        files = model_files(run, status.best.uri)
        assert any(name.endswith(".safetensors") for name in files)
        below = run.key_of(status.best.uri)
        folder = run.fetch({f"{below}/{name}": file for name, file in files.items()}, what="the best model")
        verify_tree(folder / str(below), files, what="the best model")


def working_pod(pods: Any, run_id: str, uri: str) -> Any:
    """A pod of a run in which a step works that may be retried; None while there is none."""
    if not open_run(uri).exists(layout.BASE_VALIDATION):
        return None  # prepare, which is not retried, may still be at its end before that
    found = pods.list_namespaced_pod(pod_namespace(), label_selector=f"pipeline/runid={run_id}")
    running = [
        pod
        for pod in found.items
        if pod.status.phase == "Running"
        and pod.metadata.deletion_timestamp is None
        and "impl" in pod.metadata.name
        and any(status.name == "main" and status.state.running for status in pod.status.container_statuses or [])
    ]
    return running[0] if running else None


def test_a_tiny_run_is_uploaded_run_and_stored(cluster: Cluster, tmp_path: Path) -> None:
    command = [*cluster.arguments("submit", "run"), "--wait"]
    code, output = cluster.run(command)
    assert code == 0, output
    uri = f"{cluster.folder}/run"
    assert f"done: {uri}" in output
    assert "train-epoch" in output, "steps are told by their names"
    check_storage(uri)
    code, output = cluster.run(command)
    assert code == 0, output
    assert "has version" in output, "the same content is the same version"
    kinds = [event["kind"] for event in read_events(open_run(uri))]
    assert kinds.count("reuse") >= 14, "every step of the second run finds its work done"
    exported = tmp_path / "model"
    code, output = cluster.run([*SPIN, "export", uri, str(exported)])
    assert code == 0, output
    assert json.loads((exported / "config.json").read_text())["model_type"] == "llama"


def test_a_killed_step_is_begun_again_in_its_pod(cluster: Cluster, pods: Any) -> None:
    from kubernetes.stream import stream

    uri = f"{cluster.folder}/killed"
    code, output = cluster.run(cluster.arguments("submit", "killed", "training.save_interval=1"))
    assert code == 0, output
    run_id = cluster.runs()[0].run_id

    def kill() -> str:
        status = status_of(uri)
        assert status is None or status.state != "done", "the run ended before anything could be killed"
        if (pod := working_pod(pods, run_id, uri)) is None:
            return ""
        answer = stream(
            pods.connect_get_namespaced_pod_exec,
            pod.metadata.name,
            pod_namespace(),
            container="main",
            command=["python3", "-c", _KILL],
            stdout=True,
            stderr=True,
        )
        return str(pod.metadata.name) if "killed" in str(answer) else ""

    killed = eventually("a step that can be killed", kill, pause_s=0.5)
    code, output = cluster.run([*SPIN, "follow", run_id])
    assert code == 0, output
    assert pods.read_namespaced_pod(killed, pod_namespace()).status.phase == "Succeeded", "KFP 2.17 repeats no pod"
    assert any("was ended by SIGKILL" in event["message"] for event in read_repeats(open_run(uri)))
    check_storage(uri)


def test_a_deleted_pod_costs_no_more_than_another_submission(cluster: Cluster, pods: Any) -> None:
    # Argo calls a deleted pod an error, not a failure; KFP 2.17 has it retry errors alone, others failures alone
    uri = f"{cluster.folder}/deleted"
    command = cluster.arguments("submit", "deleted")
    code, output = cluster.run(command)
    assert code == 0, output
    run_id = cluster.runs()[0].run_id
    pod = eventually("a working pod", lambda: working_pod(pods, run_id, uri), pause_s=0.5)
    pods.delete_namespaced_pod(pod.metadata.name, pod_namespace(), grace_period_seconds=0)
    code, output = cluster.run([*SPIN, "follow", run_id])
    assert code in (0, 1), output
    if code == 1:
        code, output = cluster.run([*command, "--wait"])
        assert code == 0, output
    check_storage(uri)


def test_a_cancelled_run_ends_and_is_taken_up_again(cluster: Cluster, pods: Any) -> None:
    uri = f"{cluster.folder}/cancelled"
    command = [*cluster.arguments("submit", "cancelled"), "--wait"]
    process = cluster.start([*command, "--cancel-on-interrupt"])
    try:
        run_id = eventually("the run", lambda: [run.run_id for run in cluster.runs()])[0]
        eventually("a working pod", lambda: working_pod(pods, run_id, uri), pause_s=0.5)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 3, output
    assert "was told to end" in output
    eventually("the run's end", lambda: cluster.state(run_id) in ("CANCELED", "FAILED"))

    def no_pods() -> bool:
        found = pods.list_namespaced_pod(pod_namespace(), label_selector=f"pipeline/runid={run_id}")
        return not [pod for pod in found.items if pod.status.phase in ("Pending", "Running")]

    eventually("the end of its pods", no_pods)
    code, output = cluster.run(command)
    assert code == 0, output
    check_storage(uri)


def test_a_failure_is_told_with_the_step_and_its_reason(cluster: Cluster) -> None:
    settings = ("training.lr=1e30", "training.gradient_clip_val=0", "cluster.retries=0")
    code, output = cluster.run([*cluster.arguments("submit", "failed", *settings), "--wait"])
    assert code == 1, output
    assert "failed in train-epoch iteration 0 epoch 0: NonFiniteError" in output


def test_a_time_limit_is_not_taken_for_success(cluster: Cluster) -> None:
    code, output = cluster.run([*cluster.arguments("submit", "limited", "run.max_time=1"), "--wait"])
    assert code == 3, output
    assert "KFP reports SUCCEEDED, but the run is not finished" in output


def test_a_schedule_runs_once_for_the_data_is_replaced_and_removed(cluster: Cluster) -> None:
    name = cluster.name
    endpoint = os.environ.get("SPIN_TEST_POD_ENDPOINT", "")
    command = [*cluster.arguments("schedule", "{time}"), "--name", name, "--continue-from", cluster.folder]
    command += ["--once-for-data", *(["--pod-endpoint", endpoint] if endpoint else [])]
    try:
        code, output = cluster.run([*command, "--every", "60s"])
        assert code == 0, output
        assert "set: " in output

        def of_schedule() -> list[Any]:
            return [run for run in cluster.runs() if f"schedule {name}" in (run.description or "")]

        submitted = eventually("a run that the schedule has submitted", of_schedule, pause_s=5)
        uri = submitted[0].runtime_config.parameters["run_uri"]

        def ended() -> RunStatus | None:
            status = status_of(uri)
            assert status is None or status.state != "failed", status
            return status if status and status.state == "done" else None

        eventually("the end of that run", ended, pause_s=5)
        check_storage(uri)

        def launchers() -> list[Any]:
            return [run for run in cluster.runs() if run.recurring_run_id and run.state == "SUCCEEDED"]

        eventually("another time, when the data is not new", lambda: len(launchers()) >= 2, pause_s=5)
        assert len(of_schedule()) == 1, "it was trained on the same data twice"
        code, output = cluster.run([*command, "--every", "60s"])
        assert (code, "unchanged: " in output) == (0, True), output
        code, output = cluster.run([*command, "--cron", "0 3 * * 1"])
        assert (code, "replaced: " in output) == (0, True), output
        [found] = schedules(cluster.api, name)
        assert found.trigger.cron_schedule.cron == "0 0 3 * * 1"
    finally:
        code, output = cluster.run([*SPIN, "schedule", "--remove", "--name", name])
    assert code == 0, output
    assert schedules(cluster.api, name) == []
