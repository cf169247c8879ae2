"""Processes that hold or held the lease on a run: only the one that has the right to write changes anything.

Real processes, on files, on an S3 server that ignores the conditions of a PUT, and on one that checks them.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults.ground import Tally
from faults.harms import Rule
from faults.proxy import Proxy
from spin_components.errors import BusyError
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.lease import check_free, read_lease
from spin_components.store.lease_holder import LeaseHolder
from spin_components.store.local import LocalRun
from spin_components.store.open import open_run
from support.s3_server import BUCKET, S3Server
from support.writing_process import SHIFT, WritingProcess

LATEST, POLICY = "latest.json", "iterations/0/epochs/0/policy"
_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Scene:
    """A run, and its storage.

    Attributes:
        run: the run, without the proxy.
        proxy: None for files.
        variables: environment variables of a process that uses the proxy.
        server: None for files.
    """

    run: RunStore
    proxy: Proxy | None
    server: S3Server | None
    variables: dict[str, str]

    def process(
        self, owner: str, label: str = "step", prefix: tuple[str, ...] = (), shift_s: str = "0"
    ) -> WritingProcess:
        """Start a process that works for an attempt."""
        return WritingProcess(self.run.uri, owner, label, variables={**self.variables, SHIFT: shift_s}, prefix=prefix)

    def expire(self) -> None:
        """Let the lease expire, by the clock of the storage and for a machine that cannot see the holder."""
        lease = read_lease(self.run)
        assert lease
        moved = lease.model_copy(update={"host": "elsewhere/boot", "uptime_s": None})
        self.run.write_json(layout.LEASE, moved.model_dump(mode="json"))
        if isinstance(self.run, LocalRun):
            path = self.run.path(layout.LEASE)
            os.utime(path, (path.stat().st_mtime - 400, path.stat().st_mtime - 400))
        else:
            assert self.server
            self.server.backdate(self.run.uri_of(layout.LEASE).removeprefix(f"s3://{BUCKET}/"), 400)


@pytest.fixture(params=["files", "s3", "s3 with conditions"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> Iterator[Scene]:
    """A run without a lease."""
    if request.param == "files":
        with open_run(str(tmp_path / "run")) as run:
            yield Scene(run, None, None, {})
        return
    proxy = Proxy(s3.port, s3.folder if request.param == "s3 with conditions" else None)
    variables = {"S3_ENDPOINT": proxy.endpoint, "SPIN_CACHE_DIR": str(tmp_path / "cache")}
    with open_run(f"s3://{BUCKET}/holders/{next(_NUMBERS)}") as run:
        yield Scene(run, proxy, s3, variables)
    proxy.close()


def text_of(run: RunStore, key: str = LATEST) -> str:
    return str(run.read_json(key)["text"])


def test_of_attempts_that_begin_at_once_one_gets_the_run(scene: Scene, tally: Tally) -> None:
    processes = [scene.process(f"attempt-{number}") for number in range(3)]
    try:
        for process in processes:
            process.tell("take over")
        answers = [process.answer() for process in processes]
        begun = [number for number, answer in enumerate(answers) if answer == "ok"]
        written = [number for number in begun if processes[number].do("write", LATEST, str(number)) == "ok"]
        assert all(answer == "ok" or answer.startswith("BusyError: ") for answer in answers), answers
        assert len(written) == 1, "one may write; one that lost in the last moment is refused by its first write"
        assert text_of(scene.run) == str(written[0])
        with pytest.raises(BusyError, match=f"attempt attempt-{written[0]} on"):
            check_free(scene.run)
    finally:
        for process in processes:
            process.kill()
    tally("starts at once", "one works, the others are refused")


def test_a_holder_that_was_stopped_across_the_end_of_its_lease_changes_nothing(scene: Scene, tally: Tally) -> None:
    with scene.process("first") as first:
        assert first.do("take over") == "ok"
        assert first.do("write", LATEST, "first") == "ok"
        first.stop()
        scene.expire()
        second = LeaseHolder(scene.run, "second", take_over=True)
        try:
            scene.run.write_json(LATEST, {"text": "second"})
            scene.run.write(f"{POLICY}/model.safetensors", b"used by the second")
            before = scene.run.sizes("")
            first.go_on()
            for command in (
                ("write", LATEST, "stale"),
                ("write", "run.json", "stale"),
                ("write", "attempt.json", "stale"),
                ("stage", "data/train-00000.parquet", "stale"),
                ("delete", POLICY),
            ):
                assert first.do(*command).startswith("BusyError: attempt second has taken "), command
            assert first.do("fail") == "ok"
            assert text_of(scene.run) == "second"
            assert scene.run.sizes("") == before
            with pytest.raises(BusyError, match="attempt second"):
                check_free(scene.run)
        finally:
            second.close()
    tally("stopped across the lease's end", "refused, nothing changed")


def test_a_failed_shard_does_not_free_the_run_while_its_siblings_work(scene: Scene, tally: Tally) -> None:
    with scene.process("a", "prepare") as prepare, scene.process("a", "generate-0-0") as failing:
        assert prepare.do("take over") == "ok"
        assert prepare.do("end") == "ok"
        with scene.process("a", "generate-0-1") as sibling:
            assert failing.do("join") == sibling.do("join") == "ok"
            assert failing.do("fail") == "ok"
            with pytest.raises(BusyError, match="attempt a"):
                LeaseHolder(scene.run, "b", take_over=True)
            assert sibling.do("write", LATEST, "sibling") == "ok"
            assert sibling.do("end") == "ok"
            check_free(scene.run)
            LeaseHolder(scene.run, "b", take_over=True).close()
    tally("failed shard beside a working one", "held until the last ended")


def test_a_failed_shard_frees_the_run_where_its_siblings_were_killed_on_this_machine(scene: Scene) -> None:
    with scene.process("a", "generate-0-0") as failing:
        assert failing.do("take over") == "ok"
        with scene.process("a", "generate-0-1") as sibling:
            assert sibling.do("join") == "ok"
        assert failing.do("fail") == "ok"
    check_free(scene.run)


def test_a_try_of_a_step_writes_nothing_once_a_later_one_has_begun(scene: Scene, tally: Tally) -> None:
    with scene.process("a", "validate-0-0") as zombie, scene.process("a", "validate-0-0") as retry:
        assert zombie.do("take over") == "ok"
        zombie.stop()
        assert retry.do("join") == "ok"
        assert retry.do("write", LATEST, "retry") == "ok"
        assert retry.do("end") == "ok"
        zombie.go_on()
        for command in (("write", LATEST, "zombie"), ("stage", "a", "zombie"), ("delete", LATEST)):
            assert zombie.do(*command).startswith("BusyError: step validate-0-0 of attempt a was begun again"), command
        assert text_of(scene.run) == "retry"
    tally("retry beside a zombie", "refused, nothing changed")


@pytest.mark.parametrize("scene", ["s3", "s3 with conditions"], indirect=True)
def test_a_pointer_whose_sender_slept_in_the_request_is_not_replaced(scene: Scene, tally: Tally) -> None:
    assert scene.proxy
    with scene.process("first") as first:
        assert first.do("take over") == "ok"
        second: list[LeaseHolder] = []

        def sleep_meanwhile() -> None:
            first.stop()
            scene.expire()
            second.append(LeaseHolder(scene.run, "second", take_over=True))
            scene.run.write_json(LATEST, {"text": "second"})
            first.go_on()

        scene.proxy.reset(Rule(r"PUT .*/latest\.json", "strike before", strike=sleep_meanwhile))
        assert first.do("write", LATEST, "stale").startswith("BusyError: attempt second")
        assert text_of(scene.run) == "second"
        second[0].close()
    tally("slept in a request", "refused, nothing changed")


@pytest.mark.parametrize("scene", ["s3 with conditions"], indirect=True)
def test_a_pointer_that_arrives_after_its_time_out_is_refused_by_the_server(scene: Scene, tally: Tally) -> None:
    assert scene.proxy
    with scene.process("first") as first:
        assert first.do("take over") == "ok"
        rule = Rule(r"PUT .*/latest\.json", "store twice")
        scene.proxy.reset(rule)
        assert first.do("write", LATEST, "once") == "ok"
        assert rule.hits == 1
        assert text_of(scene.run) == "once"
        lease = read_lease(scene.run)
        assert lease
        # what a request in flight does that was sent under the tag of a pointer which another attempt has replaced
        old = scene.run.tag_of(LATEST)
        assert first.do("write", LATEST, "newer") == "ok"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("S3_ENDPOINT", scene.proxy.endpoint)
            with open_run(scene.run.uri) as late:
                assert not late.replace(LATEST, b"late", old)
        assert text_of(scene.run) == "newer"
    tally("late or repeated PUT", "refused, nothing changed")


@pytest.mark.parametrize("scene", ["s3", "s3 with conditions"], indirect=True)
@pytest.mark.parametrize("harm", ["lose answer", "store twice", "cut request", "delay", "slow down"])
def test_a_disturbed_take_over_and_renewal_end_as_undisturbed_ones(scene: Scene, harm: str, tally: Tally) -> None:
    assert scene.proxy
    rules = [Rule(where, harm) for where in (r"PUT .*/leases/00000001\.json", r"PUT .*/lease\.json", r"PUT .*latest")]
    scene.proxy.reset(*rules)
    with scene.process("a") as process:
        assert process.do("take over") == "ok"
        assert process.do("write", LATEST, "a") == "ok"
        assert text_of(scene.run) == "a"
        assert [rule.hits > 0 for rule in rules] == [True] * len(rules)
    tally(f"{harm}, of a take-over", "same end")


@pytest.mark.parametrize("scene", ["files"], indirect=True)
def test_a_pruning_that_is_killed_leaves_no_half_of_a_folder(scene: Scene, tally: Tally) -> None:
    for number in range(5):
        scene.run.write(f"{POLICY}/{number}.safetensors", b"weights")
    with scene.process("a") as process:
        assert process.do("take over") == "ok"
        assert process.do("die in deletion", POLICY) == ""
    assert scene.run.sizes(POLICY) == {}
    check_free(scene.run)
    with open_run(scene.run.uri) as run:
        run.sweep()
    assert list(Path(run.uri).rglob("*.safetensors")) == []
    tally("killed pruning", "nothing half deleted")


@pytest.mark.parametrize("shift_s", ["-600", "600"])
def test_a_holder_whose_clock_is_wrong_by_ten_minutes_holds_the_run(scene: Scene, shift_s: str, tally: Tally) -> None:
    with scene.process("a", shift_s=shift_s) as holder, scene.process("b") as other:
        assert holder.do("take over") == "ok"
        lease = read_lease(scene.run)
        assert lease
        for host in (lease.host, "elsewhere/boot"):  # seen from this machine, and from another
            moved = lease.model_copy(update={"host": host})
            scene.run.write_json(layout.LEASE, moved.model_dump(mode="json"))
            assert other.do("take over").startswith("BusyError: another runner is at work")
        assert holder.do("write", LATEST, "a") == "ok"
        scene.expire()
        assert other.do("take over") == "ok"
    tally("clock wrong by 10 minutes", "held, then expired")


def may_unshare() -> bool:
    """Whether this process may start another in a PID namespace of its own."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "true"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_unshare(), reason="PID namespaces need a right that this user lacks")
def test_a_holder_in_another_pid_namespace_of_this_machine_holds_the_run(scene: Scene, tally: Tally) -> None:
    with scene.process("a", prefix=("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")) as holder:
        assert holder.do("take over") == "ok"
        lease = read_lease(scene.run)
        assert lease and not lease.is_local
        with pytest.raises(BusyError, match="attempt a"):
            LeaseHolder(scene.run, "b", take_over=True)
        assert holder.do("fail") == "ok"
        check_free(scene.run)
    tally("another PID namespace", "held, then released")


def test_a_lease_without_numbers_is_respected_and_taken_over_when_it_expires(scene: Scene) -> None:
    # as the version before numbers wrote it, in a pod that lives
    lease = {"owner": "old", "host": "pod-7/boot", "process": "7:7", "renewed_at": 0.0, "duration_s": 300.0}
    scene.run.write_json(layout.LEASE, lease)
    with pytest.raises(BusyError, match="attempt old"):
        LeaseHolder(scene.run, "new", take_over=True)
    scene.expire()
    holder = LeaseHolder(scene.run, "new", take_over=True)
    assert holder.number == 1
    holder.close(is_last=True)
    check_free(scene.run)


@pytest.mark.parametrize("late", [False, True], ids=["deleted", "late"])
def test_a_step_joins_its_attempt_where_the_lease_was_deleted_or_overwritten_late(scene: Scene, late: bool) -> None:
    LeaseHolder(scene.run, "older", take_over=True).close(is_last=True)
    holder = LeaseHolder(scene.run, "a", take_over=True, label="prepare")
    holder.close()
    lease = read_lease(scene.run)
    assert lease and (lease.owner, lease.number) == ("a", 2)
    scene.run.remove(layout.LEASE)
    if late:
        older = lease.model_copy(update={"owner": "older", "number": 1})
        scene.run.write_json(layout.LEASE, older.model_dump(mode="json"))
    step = LeaseHolder(scene.run, "a", take_over=False, label="validate-0-0")
    assert step.number == holder.number
    step.check()
    with pytest.raises(BusyError, match="attempt a"):
        check_free(scene.run)
    step.close()


@pytest.mark.parametrize("scene", ["files"], indirect=True)
def test_threads_that_replace_one_pointer_lose_no_write(scene: Scene) -> None:
    scene.run.write_json("count.json", {"count": 0})

    def count() -> None:
        for _ in range(20):
            while True:
                stored = scene.run.read_stored("count.json")
                assert stored
                number = json.loads(stored.content)["count"] + 1
                if scene.run.replace("count.json", json.dumps({"count": number}).encode(), stored.tag):
                    break

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(scene.run.read("count.json") or b"")["count"] == 60
