"""Start a run on a cluster, once, whatever becomes of the connection."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import tenacity
from rich.console import Console

from spin_components.errors import AlreadyTrainedError, ClusterError, ConfigError, SpinError
from spin_pipeline.cluster.client import Api
from spin_pipeline.cluster.order import TIME, Order
from spin_pipeline.cluster.package import experiment_id, find_experiment, upload
from spin_pipeline.cluster.retrain import best_model, check_new, data_digest
from spin_pipeline.cluster_settings import Configuration
from spin_pipeline.config import pipeline_parameters
from spin_pipeline.status import read_status

UNFINISHED = ("RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED", "CANCELING")
_TRIES = 5
_BETWEEN = "; "


@dataclass(frozen=True, slots=True)
class Submission:
    """A run that KFP has taken.

    Attributes:
        run_id: KFP's.
        run_uri: where it lies in storage.
    """

    run_id: str
    run_uri: str


def prepared(order: Order, console: Console) -> tuple[Order, str]:
    """What can be decided from storage, before KFP is asked: the base model, and the digest of the data.

    Returns: the order with an address and a base model of its own; the digest, empty where it does not matter.

    Raises:
        AlreadyTrainedError: a run has this data, and the order is once for data.
    """
    order.check()
    digest = ""
    if order.once_for_data:
        digest = data_digest(order.settings)
        if order.runs_folder:
            check_new(digest, order.runs_folder)
    if order.continue_from:
        model = best_model(order.continue_from)
        if model is None:
            console.print(f"no finished run in {order.continue_from} yet: from {order.settings.model.base}", **_PLAIN)
        else:
            console.print(f"continues from {model['base']}", **_PLAIN)
            order = order.with_model(model)
    return order.at(datetime.now(UTC)), digest


def submit(api: Api, order: Order, digest: str, console: Console, *, package: Any) -> Submission:
    """Upload what is not there yet, and start the run.

    Args:
        api: connected.
        order: as `prepared` returns it.
        digest: of its data; if given, KFP's runs of the experiment are asked for it too.
        console: where each step is told.
        package: the pipeline, as the configuration's `spin_pipeline` makes it.

    Raises:
        AlreadyTrainedError: a run of the experiment has this data.
        ClusterAccessError, ClusterError: see `Api`.
    """
    if digest and (found := find_experiment(api, order.experiment_name)):
        _check_new_in(api, found, order.experiment_name, digest)
    version = upload(api, order.pipeline_name, package)
    verb = "uploaded" if version.is_new else "has"
    console.print(f"pipeline {order.pipeline_name}: {verb} version {version.name}", **_PLAIN)
    body = _run_body(order, digest, version.pipeline_id, version.version_id)
    body.experiment_id = experiment_id(api, order.experiment_name)
    run_id = _create_once(api, body)
    console.print(f"run {order.run_name}: {order.settings.run.uri}", **_PLAIN)
    console.print(run_url(api, run_id), **_PLAIN)
    return Submission(run_id, order.settings.run.uri)


def pipeline_of(settings: Configuration) -> Any:
    """The DAG of a configuration; where a run lies must be given to each if it is no single address."""
    from spin_pipeline.dag import build

    if TIME in settings.run.uri:
        settings = settings.model_copy(update={"run": settings.run.model_copy(update={"uri": ""})})
    return build(settings, settings.cluster)


def run_url(api: Api, run_id: str) -> str:
    """Where the UI shows a run."""
    return f"{api.target.ui}/#/runs/details/{run_id}"


def _run_body(order: Order, digest: str, pipeline_id: str, version_id: str) -> Any:
    from kfp_server_api import V2beta1PipelineVersionReference, V2beta1Run, V2beta1RuntimeConfig

    marks = [f"submission {uuid.uuid4().hex}"]
    marks += [_data(digest)] * bool(digest) + [_schedule(order.schedule)] * bool(order.schedule)
    return V2beta1Run(
        display_name=order.run_name,
        description=_BETWEEN.join(["by spin-pipeline", *marks]),
        pipeline_version_reference=V2beta1PipelineVersionReference(
            pipeline_id=pipeline_id, pipeline_version_id=version_id
        ),
        runtime_config=V2beta1RuntimeConfig(parameters=pipeline_parameters(order.settings)),
        service_account=order.service_account or None,
    )


def _create_once(api: Api, body: Any) -> str:
    """Create the run; where an answer is lost, look whether it was created before asking again."""

    def create() -> str:
        try:
            made = api.client.runs.run_service_create_run
            run = api.call("starting the run", made, run=body, tries=1)
        except ClusterError:
            if found := _find_run(api, body):
                return found
            raise
        if not run.run_id:
            raise ConfigError("KFP's answer to a new run has no id; is this KFP 2.15 or newer?")
        return str(run.run_id)

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(_TRIES),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=15),
        retry=tenacity.retry_if_exception_type(ClusterError),
        reraise=True,
    )
    return retrying(create)


def _find_run(api: Api, body: Any) -> str:
    runs = _runs(api, body.experiment_id)
    return next((str(run.run_id) for run in runs if run.description == body.description), "")


def _runs(api: Api, experiment: str) -> Any:
    return api.pages(
        "listing runs",
        api.client.runs.run_service_list_runs,
        "runs",
        experiment_id=experiment,
        sort_by="created_at desc",
    )


def _check_new_in(api: Api, experiment: str, name: str, digest: str) -> None:
    """Refuse data that a run of the experiment has, whose storage may not know it yet."""
    for run in _runs(api, experiment):
        if not _has(run, _data(digest)):
            continue
        if run.state in UNFINISHED or (run.state == "SUCCEEDED" and _is_done(run)):
            raise AlreadyTrainedError(
                f"run {run.display_name} of experiment {name} has this data already (digest {digest[:12]}…, "
                f"{run.state}): {run_url(api, run.run_id)}. Change the data, or leave out --once-for-data"
            )


def _is_done(run: Any) -> bool:
    """Whether its storage says so too; SUCCEEDED may be said of a run that stopped early."""
    uri = run_uri_of(run)
    try:
        return read_status(uri).state == "done"
    except ConfigError:
        return False  # removed
    except SpinError:
        return True  # it cannot be asked; then KFP's word counts


def run_uri_of(run: Any) -> str:
    """Where a run lies in storage, by its parameters; empty where it is no run of ours."""
    config = run.runtime_config
    return str((config.parameters or {}).get("run_uri", "")) if config else ""


def find_unfinished(api: Api, experiment: str, schedule: str) -> str:
    """The id of a run that a schedule has submitted and that has not ended; empty where there is none."""
    runs = (run for run in _runs(api, experiment) if _has(run, _schedule(schedule)))
    return next((str(run.run_id) for run in runs if run.state in UNFINISHED), "")


def _data(digest: str) -> str:
    return f"data {digest}"


def _schedule(name: str) -> str:
    return f"schedule {name}"


def _has(run: Any, mark: str) -> bool:
    return mark in (run.description or "").split(_BETWEEN)


_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
