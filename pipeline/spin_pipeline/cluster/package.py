"""A configuration's pipeline as KFP keeps it: compiled, named, its version told by its content."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_components.errors import ClusterAccessError, ClusterError
from spin_components.store.digests import digest_json
from spin_pipeline.cluster.client import Api, named, refused_with

_EXISTS = 409


@dataclass(frozen=True, slots=True)
class Version:
    """A pipeline's version in KFP.

    Attributes:
        is_new: whether it was not there before.
    """

    pipeline_id: str
    version_id: str
    name: str
    is_new: bool


def compile_package(pipeline: Any, path: Path) -> str:
    """Write the IR; returns the name of its version, which only its content decides, not the order it is written in."""
    import yaml
    from kfp import compiler

    logging.getLogger("kfp").setLevel(logging.ERROR)
    compiler.Compiler().compile(pipeline, str(path))
    content = digest_json(list(yaml.safe_load_all(path.read_text("utf-8"))))
    return f"sha256-{content[:16]}"


def upload(api: Api, name: str, pipeline: Any) -> Version:
    """Have a pipeline in KFP, under its name and a version of this very content; uploads only what is not there.

    Raises:
        ClusterAccessError, ClusterError: see `Api`.
    """
    with tempfile.TemporaryDirectory(prefix="spin-submit-") as folder:
        path = Path(folder, "spin.yaml")
        version = compile_package(pipeline, path)
        pipeline_id = _pipeline_id(api, name)
        if found := _version_id(api, pipeline_id, version):
            return Version(pipeline_id, found, version, is_new=False)
        what = f"uploading version {version} of pipeline {name}"
        try:
            made = api.call(
                what,
                api.client.pipeline_uploads.upload_pipeline_version,
                str(path),
                name=version,
                pipelineid=pipeline_id,
            )
            return Version(pipeline_id, _id(what, made.pipeline_version_id), version, is_new=True)
        except ClusterAccessError as error:
            # somebody else's upload of the same, or our own whose answer was lost
            if refused_with(error) == _EXISTS and (found := _version_id(api, pipeline_id, version)):
                return Version(pipeline_id, found, version, is_new=True)
            raise


def experiment_id(api: Api, name: str) -> str:
    """The id of an experiment by its name; it is created if need be."""
    from kfp_server_api import V2beta1Experiment

    if found := find_experiment(api, name):
        return found
    what = f"creating the experiment {name}"
    body = V2beta1Experiment(display_name=name, namespace=api.namespace or None)
    try:
        made = api.call(what, api.client.experiments.experiment_service_create_experiment, experiment=body)
        return _id(what, made.experiment_id)
    except ClusterAccessError as error:
        if refused_with(error) == _EXISTS and (found := find_experiment(api, name)):
            return found
        raise


def find_experiment(api: Api, name: str) -> str:
    """The id of an experiment by its name; empty where there is none."""
    experiments = api.pages(
        f"looking for the experiment {name}",
        api.client.experiments.experiment_service_list_experiments,
        "experiments",
        filter=named(name),
        **_of_namespace(api),
    )
    return next((str(found.experiment_id) for found in experiments if found.display_name == name), "")


def _pipeline_id(api: Api, name: str) -> str:
    from kfp_server_api import V2beta1Pipeline

    if found := _find_pipeline(api, name):
        return found
    what = f"creating the pipeline {name}"
    body = V2beta1Pipeline(
        name=name,
        display_name=name,
        description="Self-play fine-tuning of a language model.",
        namespace=api.namespace or None,
    )
    try:
        made = api.call(what, api.client.pipelines.pipeline_service_create_pipeline, pipeline=body)
        return _id(what, made.pipeline_id)
    except ClusterAccessError as error:
        if refused_with(error) == _EXISTS and (found := _find_pipeline(api, name)):
            return found
        raise


def _find_pipeline(api: Api, name: str) -> str:
    pipelines = api.pages(
        f"looking for the pipeline {name}",
        api.client.pipelines.pipeline_service_list_pipelines,
        "pipelines",
        filter=named(name),
        **_of_namespace(api),
    )
    return next((str(found.pipeline_id) for found in pipelines if found.display_name == name), "")


def _version_id(api: Api, pipeline_id: str, name: str) -> str:
    versions = api.pages(
        f"looking for version {name}",
        api.client.pipelines.pipeline_service_list_pipeline_versions,
        "pipeline_versions",
        pipeline_id=pipeline_id,
        filter=named(name),
    )
    return next((str(found.pipeline_version_id) for found in versions if found.display_name == name), "")


def _of_namespace(api: Api) -> dict[str, str]:
    return {"namespace": api.namespace} if api.namespace else {}


def _id(what: str, found: str | None) -> str:
    if not found:
        raise ClusterError(f"{what}: the answer has no id; is this KFP 2.15 or newer?")
    return found
