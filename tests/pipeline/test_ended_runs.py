"""The lease of a run that KFP has ended: released by whoever sees that, so that the next one begins at once."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spin_components.errors import BusyError
from spin_components.store.base import RunStore
from spin_components.store.lease import check_free, read_lease, release_ended
from spin_components.store.lease_holder import LeaseHolder
from spin_components.store.open import open_run
from spin_pipeline.cluster.client import Api
from spin_pipeline.cluster.ended_run import release_before
from spin_pipeline.cluster.follow import Follower
from spin_pipeline.cluster.target import Target
from support.kfp_server import KfpServer, Look
from support.s3_server import BUCKET, S3Server


@pytest.fixture
def run(s3: S3Server, tmp_path: Path) -> RunStore:
    return open_run(f"s3://{BUCKET}/{tmp_path.name}/run")


def left_held(kfp: KfpServer, run: RunStore, state: str) -> str:
    """A run of KFP in a state, whose pods were killed while they held the lease; its id."""
    run_id = str(uuid.uuid4())
    parameters: dict[str, Any] = {"run_uri": run.uri}
    kfp.stores["runs"][run_id] = {
        "run_id": run_id,
        "display_name": "r",
        "state": state,
        "created_at": "2026-01-01T00:00:00Z",
        "runtime_config": {"parameters": parameters},
    }
    kfp.looks = [Look(state)]
    LeaseHolder(run, run_id, take_over=True).close()
    with pytest.raises(BusyError, match=run_id):
        check_free(run)
    return run_id


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_submission_takes_over_at_once_where_the_run_before_it_has_ended(
    kfp: KfpServer, run: RunStore, state: str
) -> None:
    run_id = left_held(kfp, run, state)
    assert release_before(Api(Target(kfp.endpoint)), run.uri) == run_id
    check_free(run)


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "CANCELING", "PAUSED"])
def test_a_run_whose_pods_may_be_at_work_keeps_its_lease(kfp: KfpServer, run: RunStore, state: str) -> None:
    left_held(kfp, run, state)
    assert release_before(Api(Target(kfp.endpoint)), run.uri) == ""
    with pytest.raises(BusyError):
        check_free(run)


def test_a_lease_of_another_installation_is_left_as_it_is(kfp: KfpServer, run: RunStore) -> None:
    left_held(kfp, run, "FAILED")
    kfp.stores["runs"].clear()
    assert release_before(Api(Target(kfp.endpoint)), run.uri) == ""
    with pytest.raises(BusyError):
        check_free(run)
    assert not release_ended(run, "another attempt")


def test_whoever_follows_a_run_to_its_termination_releases_its_lease(kfp: KfpServer, run: RunStore) -> None:
    run_id = left_held(kfp, run, "FAILED")
    kfp.looks = [Look("CANCELING"), Look("FAILED")]
    console = Console(record=True, width=200)
    assert Follower(Api(Target(kfp.endpoint)), run_id, console).wait() == 3
    assert f"released the lease of the ended run on {run.uri}" in console.export_text()
    lease = read_lease(run)
    assert lease and (lease.owner, lease.remaining_s) == (run_id, 0.0)
    holder = LeaseHolder(run, "next", take_over=True)
    holder.close(is_last=True)
