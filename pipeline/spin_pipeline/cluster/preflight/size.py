"""Check of the number of tasks."""

from __future__ import annotations

from collections.abc import Iterator

from spin_pipeline.cluster.preflight.findings import Finding, warned
from spin_pipeline.deploy.cluster_settings import Configuration
from spin_pipeline.deploy.workflow_size import size_warning


def check_size(configuration: Configuration) -> Iterator[Finding]:
    """Warn of a pipeline whose run may become too large for Argo."""
    from spin_pipeline.dag import build, shape_of

    num_tasks = shape_of(configuration, configuration.cluster).num_tasks
    if warning := size_warning(num_tasks, build(configuration, configuration.cluster)):
        message, _, remedy = warning.partition(": ")
        yield warned("size", message, remedy)
