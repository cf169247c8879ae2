"""Removes duplicate components and executors from a compiled pipeline.

KFP's compiler writes a copy of the components and executors for every call of a nested pipeline and for every task
whose pod is configured: four iterations give four equal sets. Argo stores the pipeline as one object, which etcd limits
to 1.5 MiB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

_KUBERNETES = "kubernetes"


def merge_duplicates(ir: dict[str, Any], platform: dict[str, Any]) -> None:
    """Merge equal executors, then equal components, in place, and name them after their steps.

    A component of a loop is not merged: KFP adds Argo's templates of an iterator once for every graph that has the
    loop, and refuses a second one of the same name.

    Args:
        ir: a `PipelineSpec` as plain values.
        platform: the `PlatformSpec` that belongs to it; may be empty.
    """
    executors = ir["deploymentSpec"]["executors"]
    configs = platform.get("platforms", {}).get(_KUBERNETES, {}).get("deploymentSpec", {}).get("executors", {})
    kept = _merge(executors, lambda name: [executors[name], configs.get(name)])
    for name in set(configs) - set(executors):
        del configs[name]
    names = _rename(executors)
    for name in list(configs):
        configs[names[name]] = configs.pop(name)
    components = ir["components"]
    for component in components.values():
        if "executorLabel" in component:
            component["executorLabel"] = names[kept[component["executorLabel"]]]
    iterated = {task["componentRef"]["name"] for task in _tasks(ir) if "parameterIterator" in task}
    count = 0
    while count != len(components):
        count = len(components)
        kept = _merge(components, lambda name: name if name in iterated else components[name])
        _refer(ir, kept)
    _refer(ir, _rename(components))


def _merge(table: dict[str, Any], content: Callable[[str], Any]) -> dict[str, str]:
    """Delete entries whose content equals an earlier one's; returns the remaining name for each name."""
    first: dict[str, str] = {}
    kept = {name: first.setdefault(json.dumps(content(name), sort_keys=True), name) for name in _in_order(table)}
    for name, other in kept.items():
        if name != other:
            del table[name]
    return kept


def _rename(table: dict[str, Any]) -> dict[str, str]:
    """Drop the numbers at the end of each name where no other entry has that name; returns the new name for each."""
    bases = {name: re.sub(r"(-\d+)+$", "", name) for name in table}
    single = {base for base in bases.values() if list(bases.values()).count(base) == 1}
    names = {name: base if base in single else name for name, base in bases.items()}
    entries = [(names[name], table[name]) for name in _in_order(table)]
    table.clear()
    table.update(entries)
    return names


def _in_order(names: dict[str, Any]) -> list[str]:
    """Names sorted with `validate` before `validate-2` before `validate-10`."""
    return sorted(names, key=lambda name: (len(name), name))


def _refer(ir: dict[str, Any], names: dict[str, str]) -> None:
    """Have tasks refer to components by their new names."""
    for task in _tasks(ir):
        task["componentRef"]["name"] = names[task["componentRef"]["name"]]


def _tasks(ir: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for component in (ir["root"], *ir["components"].values()):
        yield from component.get("dag", {}).get("tasks", {}).values()
