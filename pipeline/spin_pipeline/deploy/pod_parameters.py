"""Passes what pods request at run time as one parameter, `pods`, of which each task takes its part.

`prepare` returns the requests of all kinds of pods in one table. KFP's driver reads a resource from a text among the
inputs of a task, and node selector, tolerations and affinity from inputs of the graph that the task is in. So the
outermost graph takes these three out of the table for all graphs within, and a task its own four values, with the
expression that KFP's compiler writes for a key of a loop's item.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PODS = "pods"
"""Output of `prepare` with the requests of all pods; see `spin_components.prepare.pods`."""

_CHANNEL = "pipelinechannel--"  # KFP resolves a resource from a parameter with this prefix only
_LOOP_ITEM = f"{_CHANNEL}loop-item"
_PLACEMENT = {"node_selector": "STRUCT", "tolerations": "LIST", "affinity": "STRUCT"}


@dataclass(frozen=True, slots=True)
class PodKind:
    """What the pod of a step with a model is.

    Attributes:
        image: `generate` or `train`.
        resources: whose CPU and memory it has: of `generate`, `train` or `score`.
        gpus: whose number of GPUs it has: of these, `validate` or `evaluate`.
    """

    image: str
    resources: str
    gpus: str


_GENERATE, _TRAIN = PodKind("generate", "generate", "generate"), PodKind("train", "train", "train")

POD_KINDS: dict[str, PodKind] = {
    "generate": _GENERATE,
    "generate-and-score": _GENERATE,
    "ref-logprob": PodKind("train", "score", "score"),
    "validate": PodKind("train", "score", "validate"),
    "evaluate": PodKind("train", "score", "evaluate"),
    **dict.fromkeys(("train-epoch", "train-and-validate", "warm-up", "control"), _TRAIN),
}
"""The steps with a model, by the names that `iteration.task_of` gives their tasks."""

_TASK = re.compile(r"(.+?)(-base|-warm-up|-control)?(?:-(\d+))?(?:-(\d+))?")


def parts_of(key: str) -> tuple[str, str, str]:
    """Step, iteration and epoch of a task's key; empty where it has none.

    Args:
        key: as `train-epoch-1-0`; see `iteration.task_of`.
    """
    match = _TASK.fullmatch(key)
    assert match
    return match[1], match[3] or "", match[4] or ""


def graphs(ir: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Components with tasks: the root, nested pipelines, loops and conditions."""
    yield from (component for component in (ir["root"], *ir["components"].values()) if "dag" in component)


def shorten_inputs(ir: dict[str, Any]) -> None:
    """Name inputs of nested graphs as what they are, as `run_uri` for `pipelinechannel--prepare-run_uri`, in place.

    Names that KFP reads a meaning from stay: items of loops, lists that loops go over, and what a condition compares.
    """
    for graph in graphs(ir):
        for task in graph["dag"]["tasks"].values():
            inner = ir["components"][task["componentRef"]["name"]]
            if "dag" not in inner:
                continue
            inputs = inner["inputDefinitions"]["parameters"]
            names = {name: _short(name, task) for name in inputs}
            assert len(set(names.values())) == len(names)
            inner["inputDefinitions"]["parameters"] = {names[name]: value for name, value in inputs.items()}
            given = task["inputs"]["parameters"]
            task["inputs"]["parameters"] = {names[name]: value for name, value in given.items()}
            for nested in inner["dag"]["tasks"].values():
                for value in nested.get("inputs", {}).get("parameters", {}).values():
                    if "componentInputParameter" in value:
                        value["componentInputParameter"] = names[value["componentInputParameter"]]


def _short(name: str, task: dict[str, Any]) -> str:
    compared = task.get("triggerPolicy", {}).get("condition", "")
    iterator = task.get("parameterIterator", {})
    of_loop = {iterator.get("itemInput"), iterator.get("items", {}).get("inputParameter")}
    if name.startswith(_LOOP_ITEM) or name in of_loop or f"'{name}'" in compared:
        return name
    return name.removeprefix(_CHANNEL).removeprefix("prepare-")


def pass_requests(ir: dict[str, Any], platform: dict[str, Any]) -> None:
    """Have tasks with a model request what `pods` says, in place; each graph has an input of this name."""
    executors = ir["deploymentSpec"]["executors"]
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for graph in graphs(ir):
        is_outermost = PODS not in graph.get("inputDefinitions", {}).get("parameters", {})
        for key, task in graph["dag"]["tasks"].items():
            given = task.get("inputs", {}).get("parameters", {})
            inner = ir["components"][task["componentRef"]["name"]]
            if "dag" in inner and PODS in given:
                for name, kind in _PLACEMENT.items():
                    inner["inputDefinitions"]["parameters"][name] = {"parameterType": kind}
                    given[name] = _entry(given[PODS], name) if is_outermost else {"componentInputParameter": name}
            elif "dag" not in inner and (pod_kind := POD_KINDS.get(parts_of(key)[0])):
                table = {"componentInputParameter": PODS}
                given |= {f"{_CHANNEL}{name}": _entry(table, entry) for name, entry in _requests(pod_kind).items()}
                label = inner["executorLabel"]
                executors[label]["container"]["resources"] = _resources()
                pods[label] |= {
                    "nodeSelector": {"nodeSelectorJson": {"componentInputParameter": "node_selector"}},
                    "tolerations": [{"tolerationJson": {"componentInputParameter": "tolerations"}}],
                    "nodeAffinity": [{"nodeAffinityJson": {"componentInputParameter": "affinity"}}],
                }


def _requests(kind: PodKind) -> dict[str, str]:
    """Key of `pods` for each of a task's inputs."""
    return {
        "cpu": f"{kind.resources}_cpu",
        "memory": f"{kind.resources}_memory",
        "gpu_type": "gpu_type",
        "gpus": f"{kind.gpus}_gpus",
    }


def _resources() -> dict[str, Any]:
    """A container's resources, in KFP's placeholders. Kubernetes takes a limit as the request too."""
    cpu, memory, gpu_type, gpus = (f"{{{{$.inputs.parameters['{_CHANNEL}{name}']}}}}" for name in _requests(_TRAIN))
    return {
        "resourceCpuLimit": cpu,
        "resourceMemoryLimit": memory,
        "accelerator": {"resourceType": gpu_type, "resourceCount": gpus},
    }


def _entry(table: dict[str, Any], key: str) -> dict[str, Any]:
    """A task's input: the value of a key of a table."""
    return {**table, "parameterExpressionSelector": f'parseJson(string_value)["{key}"]'}
