"""Tests against a real KFP (2.15 to 2.17), for example in a kind cluster; skipped where KFP_ENDPOINT is not set.

    pytest tests/cluster

What they need, as variables:

KFP_ENDPOINT            the API as it is reached from here: `kubectl port-forward -n kubeflow svc/ml-pipeline 8888` and
                        http://127.0.0.1:8888. KFP_TOKEN or KFP_TOKEN_FILE, KFP_CA_CERT, KFP_NAMESPACE where it asks.
SPIN_TEST_BUCKET        an existing bucket that both this machine and the pods may write to.
S3_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
                        that storage as it is reached from here.
SPIN_TEST_POD_NAMESPACE where the pods run: KFP_NAMESPACE if that is set, else kubeflow.
KUBECONFIG              or ~/.kube/config: to watch, kill and delete pods there.
SPIN_TEST_SET           more settings, `section.key=value` separated by blanks: `cluster.image_prefix=…` and
                        `cluster.image_tag=…` where the images have other names, `cluster.storage_secret=…`.
SPIN_TEST_POD_ENDPOINT  the API as pods reach it, where that is not ml-pipeline.kubeflow:8888.
SPIN_TEST_TIMEOUT_S     for one run, 1800 by default.

In the cluster: the images (`make images`, then `kind load docker-image`); in the pods' namespace the Secret
`spin-storage` with the keys S3_ENDPOINT (as pods reach the storage), AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; and a
node with 2 cores and 4 GiB to spare. Runs lie below s3://BUCKET/spin-cluster-tests/ and are left there to be looked at.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.corner import TIMEOUT_S, Cluster
from spin_pipeline.cluster.client import Api, connect
from spin_pipeline.cluster.target import find_target

NEEDED = ("KFP_ENDPOINT", "SPIN_TEST_BUCKET", "S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a cluster where there is none, and say which variables are missing."""
    here = Path(__file__).parent
    missing = [name for name in NEEDED if not os.environ.get(name)]
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(4 * TIMEOUT_S))
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"needs a KFP cluster: set {', '.join(missing)}"))


@pytest.fixture(scope="session")
def api() -> Api:
    """The API that the environment names."""
    return connect(find_target())


@pytest.fixture
def cluster(api: Api, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A corner for one test; runs that it leaves unfinished are ended."""
    name = f"spin-test-{uuid.uuid4().hex[:8]}"
    folder = f"s3://{os.environ['SPIN_TEST_BUCKET']}/spin-cluster-tests/{name}"
    corner = Cluster(api, name, folder, tmp_path / "cache")
    yield corner
    for run in corner.runs():
        if run.state in ("PENDING", "RUNNING"):
            api.call("ending a run", api.client.runs.run_service_terminate_run, run.run_id)


@pytest.fixture(scope="session")
def pods() -> Any:
    """The Kubernetes API for pods, with the namespace they run in."""
    from kubernetes import client, config

    try:
        config.load_config()
    except config.ConfigException as error:
        pytest.skip(f"needs a kubeconfig to watch and kill pods: {error}")
    return client.CoreV1Api()
