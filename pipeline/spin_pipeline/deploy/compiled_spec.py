"""Finishes a compiled pipeline: readable names, requests of pods, small tasks, no duplicates.

Argo stores a run as one object, which ends the run above about 1 MiB. What a task's command, environment and inputs
take stands in it eight times, so on a cluster the command is that of `spin_components.runtime.task`, which finds the
component's function in the image, instead of the function's source.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import json_format

from spin_components.settings.form import FIELDS, PREFIX
from spin_pipeline.deploy.dedupe_spec import merge_duplicates
from spin_pipeline.deploy.pod_parameters import graphs, pass_requests, shorten_inputs

ENTRY = ["python3", "-m", "spin_components.runtime.task"]
"""Command of a task's container."""

_GROUP = re.compile(r"(condition|for-loop|exit-handler)(-\d+)+")


def finish(pipeline_spec: Any, platform_spec: Any, *, has_images: bool) -> None:
    """Finish a compiled pipeline in place.

    Args:
        pipeline_spec: a `PipelineSpec` message.
        platform_spec: the `PlatformSpec` message that belongs to it; may be empty.
        has_images: whether tasks run in the project's images; False on one machine.
    """
    ir, platform = json_format.MessageToDict(pipeline_spec), json_format.MessageToDict(platform_spec)
    for graph in list(graphs(ir)):
        _name_groups(graph, ir["components"])
    shorten_inputs(ir)
    if has_images:
        pass_requests(ir, platform)
        for executor in ir["deploymentSpec"]["executors"].values():
            executor["container"]["command"] = list(ENTRY)
    for name, parameter in ir["root"]["inputDefinitions"]["parameters"].items():
        section = name.removeprefix(PREFIX)
        parameter["description"] = FIELDS[name].description if name in FIELDS else f"Other settings of [{section}]."
    merge_duplicates(ir, platform)
    for message, values in ((pipeline_spec, ir), (platform_spec, platform)):
        message.Clear()
        json_format.ParseDict(values, message)


def _name_groups(graph: dict[str, Any], components: dict[str, Any]) -> None:
    """Give loops, conditions and the exit handler keys made from their display names; KFP numbers them."""
    dag = graph["dag"]
    keys = {
        key: re.sub(r"[^a-z0-9]+", "-", task["taskInfo"]["name"].lower()).strip("-") if _GROUP.fullmatch(key) else key
        for key, task in dag["tasks"].items()
    }
    dag["tasks"] = {keys[key]: task for key, task in dag["tasks"].items()}
    for task in dag["tasks"].values():
        if "dependentTasks" in task:
            task["dependentTasks"] = sorted(keys[key] for key in task["dependentTasks"])
    _rename_producers(dag, keys)
    for old, new in keys.items():
        if old != new:
            reference = dag["tasks"][new]["componentRef"]
            components[f"comp-{new}"] = components.pop(reference["name"])
            reference["name"] = f"comp-{new}"


def _rename_producers(node: Any, keys: dict[str, str]) -> None:
    if isinstance(node, list):
        for value in node:
            _rename_producers(value, keys)
    elif isinstance(node, dict):
        for name in ("producerTask", "producerSubtask"):
            if name in node:
                node[name] = keys[node[name]]
        for value in node.values():
            _rename_producers(value, keys)
