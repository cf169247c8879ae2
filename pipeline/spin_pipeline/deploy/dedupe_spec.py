"""Removes duplicate components and executors from a compiled pipeline.

KFP's compiler writes a copy of the components and executors for every call of a nested pipeline and for every task
whose pod is configured: four iterations give four equal sets. Argo stores the pipeline as one object, which etcd limits
to 1.5 MiB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf import json_format

_KUBERNETES = "kubernetes"


def merge_duplicates(pipeline_spec: Any, platform_spec: Any) -> None:
    """Merge equal executors, then equal components, in place.

    Args:
        pipeline_spec: a `PipelineSpec` message.
        platform_spec: the `PlatformSpec` message that belongs to it; may be empty.
    """
    ir, platform = json_format.MessageToDict(pipeline_spec), json_format.MessageToDict(platform_spec)
    executors = ir["deploymentSpec"]["executors"]
    configs = platform.get("platforms", {}).get(_KUBERNETES, {}).get("deploymentSpec", {}).get("executors", {})
    kept = _merge(executors, lambda name: [executors[name], configs.get(name)])
    for name in set(configs) - set(executors):
        del configs[name]
    components = ir["components"]
    for component in components.values():
        if "executorLabel" in component:
            component["executorLabel"] = kept[component["executorLabel"]]
    count = 0
    while count != len(components):
        count = len(components)
        kept = _merge(components, components.__getitem__)
        for task in _tasks(ir):
            task["componentRef"]["name"] = kept[task["componentRef"]["name"]]
    for message, values in ((pipeline_spec, ir), (platform_spec, platform)):
        message.Clear()
        json_format.ParseDict(values, message)


def _merge(table: dict[str, Any], content: Callable[[str], Any]) -> dict[str, str]:
    """Delete entries whose content equals an earlier one's; returns the remaining name for each name."""
    first: dict[str, str] = {}
    kept = {name: first.setdefault(json.dumps(content(name), sort_keys=True), name) for name in _in_order(table)}
    for name, other in kept.items():
        if name != other:
            del table[name]
    return kept


def _in_order(names: dict[str, Any]) -> list[str]:
    """Names sorted with `validate` before `validate-2` before `validate-10`."""
    return sorted(names, key=lambda name: (len(name), name))


def _tasks(ir: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for component in (ir["root"], *ir["components"].values()):
        yield from component.get("dag", {}).get("tasks", {}).values()
