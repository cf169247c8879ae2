"""Starts a run on a cluster, exactly once even if connections fail."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import tenacity
from rich.console import Console

from spin_components.errors import AlreadyTrainedError, ClusterError, ConfigError, SpinError
from spin_components.settings.form import form_values
from spin_components.store.addresses import filled_in
from spin_pipeline.cluster.client import Api
from spin_pipeline.cluster.ended_run import UNFINISHED, release_before
from spin_pipeline.cluster.package import experiment_id, find_experiment, upload
from spin_pipeline.cluster.retrain import best_model, check_new, data_digest
from spin_pipeline.cluster.submission import ID, TIME, Submission
from spin_pipeline.deploy.cluster_settings import Configuration
from spin_pipeline.runs.status import read_status

_TRIES = 5
_BETWEEN = "; "


@dataclass(frozen=True, slots=True)
class SubmittedRun:
    """A run that KFP has accepted.

    Attributes:
        run_id: KFP's id.
        run_uri: address of its storage.
    """

    run_id: str
    run_uri: str


def resolve(submission: Submission, console: Console) -> tuple[Submission, str]:
    """Fill in the address, the name and the base model of a submission, and compute the digest of its data.

    Returns: the completed submission; the digest, empty without `once_for_data`.

    Raises:
        AlreadyTrainedError: `once_for_data` is set and an earlier run has this data.
    """
    submission.check()
    digest = ""
    if submission.once_for_data:
        digest = data_digest(submission.settings)
        if submission.runs_folder:
            check_new(digest, submission.runs_folder)
    if submission.continue_from:
        model = best_model(submission.continue_from)
        if model is None:
            console.print(
                f"no finished run in {submission.continue_from} yet; starting from {submission.settings.model.base}",
                **_PLAIN,
            )
        else:
            console.print(f"continues from {model['base']}", **_PLAIN)
            submission = submission.with_model(model)
    return submission.at(datetime.now(UTC)), digest


def submit(api: Api, submission: Submission, digest: str, console: Console, *, package: Any) -> SubmittedRun:
    """Upload the pipeline if KFP does not have it, and start the run.

    Args:
        api: the KFP API.
        submission: as returned by `resolve`.
        digest: of its data; if not empty, the experiment's runs are searched for the same data.
        console: to print to.
        package: the pipeline; see `pipeline_of`.

    Raises:
        AlreadyTrainedError: a run of the experiment has this data.
        ClusterAccessError, ClusterError: see `Api`.
    """
    if digest and (experiment := find_experiment(api, submission.experiment_name)):
        _check_new_in(api, experiment, submission.experiment_name, digest)
    version = upload(api, submission.pipeline_name, package)
    verb = "uploaded" if version.is_new else "has"
    console.print(f"pipeline {submission.pipeline_name}: {verb} version {version.name}", **_PLAIN)
    if ended := release_before(api, submission.settings.run.uri):
        console.print(f"released the lease of run {ended}, which KFP has ended", **_PLAIN)
    body = _run_body(submission, digest, version.pipeline_id, version.version_id)
    body.experiment_id = experiment_id(api, submission.experiment_name)
    run_id = _create_once(api, body)
    run_uri = submission.settings.run.uri.replace(ID, run_id)
    console.print(f"run {submission.run_name}: {run_uri}", **_PLAIN)
    console.print(run_url(api, run_id), **_PLAIN)
    return SubmittedRun(run_id, run_uri)


def pipeline_of(settings: Configuration) -> Any:
    """The pipeline of a configuration."""
    from spin_pipeline.dag import build

    return build(settings, settings.cluster)


def run_url(api: Api, run_id: str) -> str:
    """Address of a run in the KFP UI."""
    return f"{api.target.ui}/#/runs/details/{run_id}"


def _run_body(submission: Submission, digest: str, pipeline_id: str, version_id: str) -> Any:
    from kfp_server_api import V2beta1PipelineVersionReference, V2beta1Run, V2beta1RuntimeConfig

    marks = [f"submission {uuid.uuid4().hex}"]
    marks += [_data(digest)] * bool(digest) + [_schedule(submission.schedule)] * bool(submission.schedule)
    return V2beta1Run(
        display_name=submission.run_name,
        description=_BETWEEN.join(["by spin-pipeline", *marks]),
        pipeline_version_reference=V2beta1PipelineVersionReference(
            pipeline_id=pipeline_id, pipeline_version_id=version_id
        ),
        runtime_config=V2beta1RuntimeConfig(parameters=form_values(submission.settings)),
        service_account=submission.service_account or None,
    )


def _create_once(api: Api, body: Any) -> str:
    """Create the run; if a response is lost, check whether the run exists before trying again."""

    def create() -> str:
        try:
            operation = api.client.runs.run_service_create_run
            run = api.call("starting the run", operation, run=body, tries=1)
        except ClusterError:
            if existing := _find_run(api, body):
                return existing
            raise
        if not run.run_id:
            raise ConfigError("starting the run: the response has no id; is this KFP 2.15 or newer?")
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
    """Check that no run of the experiment has the data; a pending run has not recorded it in storage yet."""
    for run in _runs(api, experiment):
        if not _has(run, _data(digest)):
            continue
        if run.state in UNFINISHED or (run.state == "SUCCEEDED" and _is_done(run)):
            raise AlreadyTrainedError(
                f"run {run.display_name} of experiment {name} has this data already (digest {digest[:12]}…, "
                f"{run.state}): {run_url(api, run.run_id)}. Change the data, or leave out --once-for-data"
            )


def _is_done(run: Any) -> bool:
    """Whether a run is finished in its storage; KFP reports SUCCEEDED for a run that stopped early, too."""
    uri = run_uri_of(run)
    try:
        return read_status(uri).state == "done"
    except ConfigError:
        return False  # the run was deleted
    except SpinError:
        return True  # storage cannot be read from here; rely on KFP's state


def run_uri_of(run: Any) -> str:
    """Address of a run's storage, from its parameters; empty if the run has none."""
    config = run.runtime_config
    uri = str((config.parameters or {}).get("run_uri", "")) if config else ""
    if ID in uri or TIME in uri:  # filled in by the run's tasks
        created = run.created_at.strftime("%Y-%m-%dT%H:%M:%SZ") if run.created_at else ""
        return filled_in(uri, str(run.run_id), created, what="run_uri")
    return uri


def find_unfinished(api: Api, experiment: str, schedule: str) -> str:
    """The id of an unfinished run that a schedule has submitted; empty if there is none."""
    runs = (run for run in _runs(api, experiment) if _has(run, _schedule(schedule)))
    return next((str(run.run_id) for run in runs if run.state in UNFINISHED), "")


def _data(digest: str) -> str:
    return f"data {digest}"


def _schedule(name: str) -> str:
    return f"schedule {name}"


def _has(run: Any, mark: str) -> bool:
    return mark in (run.description or "").split(_BETWEEN)


_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
