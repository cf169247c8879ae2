"""Estimate of the size that Argo's object of a run reaches, which ends the run above a limit.

Argo compresses what it keeps of each node when the object passes 1 MiB, and fails the run where that does not help. A
task is five to seven nodes and their inputs.
"""

from __future__ import annotations

from typing import Any

_LIMIT_KIB = 1024
_TASK_KIB = 4.5
"""Compressed size of a task's nodes: 62 KB in 10.4 : 1 on Kubeflow Pipelines 2.17, less what tasks have lost since."""

_SPEC_COPIES = 2
"""The compiled pipeline stands in the object as arguments and, escaped, in Argo's templates."""


_SPEC_KIB = 200
"""Of the compiled pipeline's copies, in a run of 6 iterations."""


def most_tasks() -> int:
    """Number of tasks that a run may have beside its compiled pipeline."""
    return int((_LIMIT_KIB - _SPEC_KIB) / _TASK_KIB)


def workflow_kib(num_tasks: int, pipeline: Any) -> float:
    """Estimated size of the workflow object at the end of a run, in KiB.

    Args:
        num_tasks: tasks of a run with all iterations.
        pipeline: the compiled pipeline.
    """
    spec_bytes = int(pipeline.pipeline_spec.ByteSize() + pipeline.platform_spec.ByteSize())
    return num_tasks * _TASK_KIB + _SPEC_COPIES * spec_bytes / 1024


def size_warning(num_tasks: int, pipeline: Any) -> str:
    """A warning where a run may become too large for Argo; empty where it does not."""
    kib = workflow_kib(num_tasks, pipeline)
    if kib <= _LIMIT_KIB:
        return ""
    return (
        f"a run of all {num_tasks} tasks would reach about {kib / 1024:.1f} MiB as an Argo workflow, which ends runs "
        "above 1 MiB: lower generation.shards, or spin.max_iterations and resume the run with more of them later"
    )
