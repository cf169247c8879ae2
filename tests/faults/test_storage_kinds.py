"""Properties of any kind of storage: equal results, errors for damage, and no secret in any file."""

from __future__ import annotations

import re

from faults.attempts import Attempt, AttemptResult
from faults.damage import damage
from faults.ends import read_end
from faults.file_ground import FileGround
from faults.ground import Ground, Tally, describe, repeat, tables
from faults.harms import Rule
from faults.plans import Fault
from support.s3_server import SECRET_KEY


def test_object_storage_and_files_give_the_same_losses_and_digests(ground: Ground, file_ground: FileGround) -> None:
    assert ground.end.losses == file_ground.end.losses
    assert ground.end.val_losses == file_ground.end.val_losses
    assert ground.end.digests == file_ground.end.digests
    assert ground.end.keys == file_ground.end.keys


def test_an_unreachable_server_is_an_error_and_the_same_command_resumes(ground: Ground, tally: Tally) -> None:
    ground.restore("generate", warm=True)
    ground.proxy.reset(Rule(r"PUT .*/generations/00000\.parquet", "strike before", strike=ground.server.kill))
    failed = ground.begin(SPIN_STORAGE_DEADLINE_S="2").wait()
    ground.server.start()
    assert (failed.error, failed.is_clear) == ("StorageError", True), failed.message
    # the upload itself, or the check of the lease before it is tried again
    assert re.match(r"(PUT|LIST) s3://bucket/run/\S+: no valid response from http://", failed.message)
    assert ground.begin().wait().kind == "done"
    ground.check_end("the server was away")
    tally("server stays away", "clear error, then the same end")


def test_a_damaged_policy_is_trained_again(ground: Ground, tally: Tally) -> None:
    ground.restore("end", warm=False)
    fault = Fault("flip", "end", "iterations/0/epochs/1/policy/model.safetensors", skip=300_000)
    with ground.store() as run:
        damage(run, fault)

    def play(_: int) -> AttemptResult:
        more = {"spin": {"max_iterations": 2}}
        return Attempt(tables(**more), ground.variables(), ground.folder / "logs").wait()

    outcomes = repeat(play, lambda outcome: ground.obey(outcome.message, fault), what=str(fault))
    with ground.store() as run:
        end = read_end(run)
    assert not end.damage
    before = {key: end.digests.get(key) for key in ground.end.digests}
    assert before == ground.end.digests
    tally("flip (published policy)", describe(outcomes))


def test_no_secret_is_written_anywhere(ground: Ground) -> None:
    ground.restore("prepare", warm=False)
    outcomes: list[AttemptResult] = []
    ground.proxy.reset(
        Rule(r"PUT .*/generations/00000\.parquet", "drop"),
        Rule(r"GET .*/generations/00000\.parquet", "flip answer"),
        Rule(r"PUT .*/ref_logprobs/00000\.parquet", "flip request"),
        Rule(r"PUT .*/epochs/0/partial\.json", "strike after", strike=ground.kill_worker),
    )
    while not outcomes or outcomes[-1].kind != "done":
        outcomes.append(ground.begin().wait())
        assert len(outcomes) < 6, outcomes
    wrong_key = {"AWS_SECRET_ACCESS_KEY": SECRET_KEY[::-1]}
    outcomes.append(ground.begin(**wrong_key).wait())
    assert outcomes[-1].error == "StorageAccessError"
    files = [path for path in ground.folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    for secret in (SECRET_KEY, SECRET_KEY[::-1]):
        assert [str(path) for path in files if secret.encode() in path.read_bytes()] == []
