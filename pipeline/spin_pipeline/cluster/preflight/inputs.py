"""Checks of a run's addresses, and of its storage from this machine; no cluster is contacted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from spin_components.data import builtin
from spin_components.errors import SpinError
from spin_components.prepare.input_checks import check_inputs, named_sources
from spin_components.settings.settings import Settings
from spin_components.store.addresses import check_address, scheme_of
from spin_components.store.open import open_run
from spin_pipeline.cluster.preflight.findings import Finding, failed, passed, warned

_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "MINIO_ACCESS_KEY",
    "accesskey",
    "S3_SECRET_DIR",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def check_addresses(settings: Settings) -> Iterator[Finding]:
    """Check that pods can reach the addresses of the run, the base model and the data; nothing is contacted."""
    mistakes = list(_mistaken(settings))
    yield from mistakes
    if not mistakes:
        where = f"{settings.run.uri}, of {settings.model.base} and {settings.data.train}"
        yield passed("addresses", f"{where}: all such that pods can reach them")


def _mistaken(settings: Settings) -> Iterator[Finding]:
    if not settings.run.uri:
        yield failed("addresses", "run.uri is empty", "name the address of the run: --run-uri s3://bucket/prefix")
    elif scheme_of(settings.run.uri) == "file":
        message = f"run.uri = {settings.run.uri} is a folder; pods have no folder in common"
        yield failed("addresses", message, "give one in object storage: --run-uri s3://bucket/prefix")
    sources = {"model.base": settings.model.base}
    sources |= {f"data.{name}": uri for name, uri in named_sources(settings).items()}
    sources |= {"evaluation.task_files": settings.evaluation.task_files} if settings.evaluation.task_files else {}
    for name, uri in sources.items():
        if not builtin.is_builtin(uri) and scheme_of(uri) == "file":
            remedy = f"upload it, and set {name} to s3://bucket/prefix (or hf://org/name)"
            yield failed("addresses", f"{name} = {uri} is a path, which pods do not have", remedy)
    for name, uri in {"run.uri": settings.run.uri, **sources}.items():
        if uri and not builtin.is_builtin(uri) and scheme_of(uri) != "file":
            try:
                check_address(uri, what=name)
            except SpinError as error:
                yield failed("addresses", str(error), "correct the address")
    if all(builtin.is_builtin(uri) for uri in sources.values()):
        try:
            check_inputs(settings)  # costs nothing here; what is elsewhere, prepare checks before any other step
        except SpinError as error:
            yield failed("addresses", str(error), "correct the configuration")


def check_storage(settings: Settings, environment: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Write, read and delete a small object from here, where there are keys."""
    environment = os.environ if environment is None else environment
    uri = settings.run.uri
    if scheme_of(uri) != "s3":
        return
    if not any(environment.get(name) for name in _KEYS):
        remedy = "set S3_ENDPOINT, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to try it; prepare tries it first of all"
        yield warned("storage", f"no keys in the environment, so {uri} was not tried from here", remedy)
        return
    try:
        with open_run(uri) as run:
            run.probe()
    except SpinError as error:
        remedy = (
            "if only the cluster reaches it: kubectl port-forward -n kubeflow svc/seaweedfs 9000, S3_ENDPOINT to match"
        )
        yield failed("storage", f"from here: {error}", remedy)
        return
    yield passed("storage", f"{uri} takes, gives and deletes, from here")
