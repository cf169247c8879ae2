"""Resolves inputs and pods of a compiled pipeline by the rules of KFP 2.17's driver, with outputs of tasks given.

Rules of `backend/src/v2/driver`: a selector is applied to the value that an input resolved to; a resource of a
container is a text among the task's inputs, whose name begins with `pipelinechannel--`; node selector, tolerations and
affinity are inputs of the graph around the task; the driver of a loop's item applies the loop's selectors again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TYPES = {
    "STRING": str,
    "STRUCT": dict,
    "LIST": list,
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
}
_RESOURCE = re.compile(r"\{\{\$\.inputs\.parameters\['(pipelinechannel--[^']+)'\]\}\}")
_SELECTOR = re.compile(r'parseJson\(string_value\)\["(\w+)"\]')
_RUN_ID = "9f3495d2-3bc4-4627-94d1-7ac994f7e741"


@dataclass(frozen=True, slots=True)
class ResolvedTask:
    """A task as its pod is made.

    Attributes:
        key: of the task.
        inputs: values by name.
        resources: CPU limit, memory limit, name and number of accelerators.
        placement: node selector, tolerations, affinity; empty for a pod that runs anywhere.
    """

    key: str
    inputs: dict[str, Any]
    resources: list[str]
    placement: list[Any]


def resolve(
    ir: Mapping[str, Any], platform: Mapping[str, Any], outputs: Mapping[str, Mapping[str, Any]]
) -> Iterator[ResolvedTask]:
    """Every container task of a run in which all conditions hold.

    Args:
        ir: the `PipelineSpec` as plain values.
        platform: the `PlatformSpec`.
        outputs: of tasks, by key and name; others are texts.
    """
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    def within(graph: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[ResolvedTask]:
        for key, task in graph["dag"]["tasks"].items():
            component = ir["components"][task["componentRef"]["name"]]
            inputs = {
                name: _value(spec, given, outputs)
                for name, spec in task.get("inputs", {}).get("parameters", {}).items()
            }
            _check_types(key, component, inputs, task)
            if "dag" in component:
                for item in _items(task):
                    yield from within(component, {**inputs, **item})
                continue
            container = ir["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
            resources = container["resources"]
            accelerator = resources.get("accelerator", {})
            asked = [
                *(resources["resourceCpuLimit"], resources["resourceMemoryLimit"]),
                *(accelerator.get("resourceType", ""), accelerator.get("resourceCount", "")),
            ]
            yield ResolvedTask(
                key,
                inputs,
                [_resource(value, inputs) for value in asked],
                _placement(pods[component["executorLabel"]], given),
            )

    defaults = ir["root"]["inputDefinitions"]["parameters"].items()
    yield from within(ir["root"], {name: value["defaultValue"] for name, value in defaults})


def _value(spec: Mapping[str, Any], given: Mapping[str, Any], outputs: Mapping[str, Mapping[str, Any]]) -> Any:
    if "componentInputParameter" in spec:
        value = given[spec["componentInputParameter"]]
    elif "taskOutputParameter" in spec:
        producer, name = (spec["taskOutputParameter"][key] for key in ("producerTask", "outputParameterKey"))
        is_of_loop = producer.endswith("-shards")
        value = outputs.get(producer, {}).get(name, [f"{producer}.{name}"] if is_of_loop else f"{producer}.{name}")
    else:
        constant = spec["runtimeValue"]["constant"]
        value = _RUN_ID if constant == "{{$.pipeline_job_uuid}}" else constant
    selector = _SELECTOR.fullmatch(spec.get("parameterExpressionSelector", ""))
    assert bool(selector) == ("parameterExpressionSelector" in spec)
    return json.loads(json.dumps(value))[selector[1]] if selector else value


def _items(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each item of a loop adds to its graph's inputs; one that adds nothing where the task is no loop."""
    if "parameterIterator" not in task:
        return [{}]
    assert "parameterExpressionSelector" not in str(task["inputs"])
    iterator = task["parameterIterator"]
    return [{iterator["itemInput"]: item} for item in json.loads(iterator["items"]["raw"])]


def _check_types(key: str, component: Mapping[str, Any], inputs: Mapping[str, Any], task: Mapping[str, Any]) -> None:
    item = task.get("parameterIterator", {}).get("itemInput")
    for name, definition in component.get("inputDefinitions", {}).get("parameters", {}).items():
        if name == item or definition["parameterType"] == "TASK_CONFIG":
            continue
        kind = _TYPES[definition["parameterType"]]
        assert isinstance(inputs[name], kind), f"{key}: {name} is {inputs[name]!r}, expected {kind}"  # type: ignore[arg-type]


def _resource(value: str, inputs: Mapping[str, Any]) -> str:
    if not (match := _RESOURCE.fullmatch(value)):
        assert "{{" not in value
        return value
    text = inputs[match[1]]
    assert isinstance(text, str)
    return text


def _placement(pod: Mapping[str, Any], given: Mapping[str, Any]) -> list[Any]:
    if "nodeSelector" not in pod:
        return []
    ((toleration,), (affinity,)) = pod["tolerations"], pod["nodeAffinity"]
    references = pod["nodeSelector"]["nodeSelectorJson"], toleration["tolerationJson"], affinity["nodeAffinityJson"]
    return [given[reference["componentInputParameter"]] for reference in references]
