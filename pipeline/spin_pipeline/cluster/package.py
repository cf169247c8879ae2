"""Uploads pipelines to KFP, with the digest of their content as the version's name, and finds experiments."""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_components import __version__
from spin_components.errors import ClusterAccessError, ClusterError
from spin_components.store.digests import digest_json
from spin_pipeline.cluster.client import Api, named, refused_with

_EXISTS = 409


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a pipeline in KFP, with the name that the UI shows; `is_new` if this process uploaded it."""

    pipeline_id: str
    version_id: str
    name: str
    is_new: bool


def compile_package(pipeline: Any, path: Path) -> str:
    """Write the IR to a file.

    Returns: the version's name, as `0.1.0-2-iterations-4cd17dd8ae7b`: the package's version, the most iterations, and
        a digest of the content that does not depend on the order of its keys. KFP may keep it as a Kubernetes name.
    """
    import yaml
    from kfp import compiler

    logging.getLogger("kfp").setLevel(logging.ERROR)
    compiler.Compiler().compile(pipeline, str(path))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C where built with libyaml: 20 times as fast
    content = digest_json(list(yaml.load_all(path.read_text("utf-8"), loader)))
    key = re.compile(r"iteration-\d+")
    counts = sum(bool(key.fullmatch(task)) for graph in _graphs(pipeline) for task in graph)
    iterations = f"-{counts}-iteration{'s' * (counts > 1)}" if counts else ""
    return f"{__version__}{iterations}-{content[:12]}"


def display_name_of(name: str) -> str:
    """The name of a version for people, as `0.1.0 2 iterations 4cd17dd8`; see `compile_package`."""
    *parts, digest = name.split("-")
    return " ".join([*parts, digest[:8]])


def _graphs(pipeline: Any) -> list[list[str]]:
    """Task keys of each graph of a pipeline."""
    spec = pipeline.pipeline_spec
    return [list(component.dag.tasks) for component in (spec.root, *spec.components.values())]


def upload(api: Api, name: str, pipeline: Any) -> Version:
    """Create the pipeline and upload the version, unless KFP has them already.

    Raises:
        ClusterAccessError, ClusterError: see `Api`.
    """
    with tempfile.TemporaryDirectory(prefix="spin-submit-") as folder:
        path = Path(folder, "spin.yaml")
        version = compile_package(pipeline, path)
        description = str(pipeline.pipeline_spec.pipeline_info.description)
        pipeline_id = _pipeline_id(api, name, description)
        shown = display_name_of(version)
        if version_id := _version_id(api, pipeline_id, version):
            return Version(pipeline_id, version_id, shown, is_new=False)
        what = f"uploading version {shown} of pipeline {name}"
        described: dict[str, Any] = {"description": description} if description else {}
        try:
            created = api.call(
                what,
                api.client.pipeline_uploads.upload_pipeline_version,
                str(path),
                name=version,
                display_name=shown,
                pipelineid=pipeline_id,
                **described,
            )
            return Version(pipeline_id, _id(what, created.pipeline_version_id), shown, is_new=True)
        except ClusterAccessError as error:
            # another process uploaded the same version, or this one did and the response was lost
            if refused_with(error) == _EXISTS and (version_id := _version_id(api, pipeline_id, version)):
                return Version(pipeline_id, version_id, shown, is_new=True)
            raise


def experiment_id(api: Api, name: str) -> str:
    """The id of an experiment, which is created if it does not exist."""
    from kfp_server_api import V2beta1Experiment

    if existing := find_experiment(api, name):
        return existing
    what = f"creating the experiment {name}"
    body = V2beta1Experiment(display_name=name, namespace=api.namespace or None)
    try:
        created = api.call(what, api.client.experiments.experiment_service_create_experiment, experiment=body)
        return _id(what, created.experiment_id)
    except ClusterAccessError as error:
        if refused_with(error) == _EXISTS and (existing := find_experiment(api, name)):
            return existing
        raise


def find_experiment(api: Api, name: str) -> str:
    """The id of an experiment; empty if it does not exist."""
    experiments = api.pages(
        f"looking for the experiment {name}",
        api.client.experiments.experiment_service_list_experiments,
        "experiments",
        filter=named(name),
        **_of_namespace(api),
    )
    return next((str(each.experiment_id) for each in experiments if each.display_name == name), "")


def _pipeline_id(api: Api, name: str, description: str) -> str:
    from kfp_server_api import V2beta1Pipeline

    if existing := _find_pipeline(api, name):
        return existing
    what = f"creating the pipeline {name}"
    body = V2beta1Pipeline(
        name=name,
        display_name=name,
        description=description or "Self-play fine-tuning of a language model.",
        namespace=api.namespace or None,
    )
    try:
        created = api.call(what, api.client.pipelines.pipeline_service_create_pipeline, pipeline=body)
        return _id(what, created.pipeline_id)
    except ClusterAccessError as error:
        if refused_with(error) == _EXISTS and (existing := _find_pipeline(api, name)):
            return existing
        raise


def _find_pipeline(api: Api, name: str) -> str:
    pipelines = api.pages(
        f"looking for the pipeline {name}",
        api.client.pipelines.pipeline_service_list_pipelines,
        "pipelines",
        filter=named(name),
        **_of_namespace(api),
    )
    return next((str(each.pipeline_id) for each in pipelines if each.display_name == name), "")


def _version_id(api: Api, pipeline_id: str, name: str) -> str:
    """The id of a version; empty if there is none. A server without display names shows the name itself."""
    for shown in (display_name_of(name), name):
        versions = api.pages(
            f"looking for version {shown}",
            api.client.pipelines.pipeline_service_list_pipeline_versions,
            "pipeline_versions",
            pipeline_id=pipeline_id,
            filter=named(shown),
        )
        for version in versions:
            if version.display_name == shown and (version.name or version.display_name) in (name, shown):
                return str(version.pipeline_version_id)
    return ""


def _of_namespace(api: Api) -> dict[str, str]:
    return {"namespace": api.namespace} if api.namespace else {}


def _id(what: str, value: str | None) -> str:
    if not value:
        raise ClusterError(f"{what}: the response has no id; is this KFP 2.15 or newer?")
    return value
