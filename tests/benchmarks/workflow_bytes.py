"""Compiled size, number of tasks, and estimated bytes of Argo's workflow object a task.

    python tests/benchmarks/workflow_bytes.py

The estimate follows KFP 2.17's driver: a task's pod-spec-patch (launcher's arguments, the executor's input, the
component, the command, environment) stands in six of Argo's nodes, its component, task, container and Kubernetes
configuration in the two nodes of its driver. A real run had 62 KB a task, with patches of 4926 characters (generate),
5117 (validate) and 10263 (prepare).

KiB of nodes a task and KiB of the compiled specification: while tasks carried the source of their function and all
settings; since they name the function and settings stay in the run's storage; and since `prepare` passes what pods
request as one parameter:

    tiny                               54.7 -> 43.0 -> 40.5      50 -> 59 -> 48
    tiny, 6 iterations, 8 shards       50.6 -> 37.2 -> 35.5      72 -> 118 -> 93
    zephyr-7b, 4 iterations            50.7 -> 37.5 -> 35.7      61 -> 88 -> 70

(Each iteration has graphs of its own since the first column, so that the UI finds its artifacts.) Of 35.5 KiB, 16 are
KFP's own: 5.5 of Argo's nodes, 11 of the launcher's arguments, the secrets and the volumes in six copies of the patch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format

from spin_pipeline.config import load_settings
from spin_pipeline.dag import build

SHAPES = {
    "tiny": ("tiny", []),
    "tiny, 6 iterations, 8 shards": ("tiny", ["spin.max_iterations=6", "generation.shards=8"]),
    "zephyr-7b, 4 iterations": ("zephyr-7b", ["spin.max_iterations=4"]),
}
_PATCH_NODES, _DRIVER_NODES, _NODE_BYTES, _GRAPH_NODE_BYTES = 6, 2, 7 * 800, 4 * 700
_LAUNCHER_CHARS, _SECRET_CHARS, _RESOURCES_CHARS, _SHM_CHARS = 1080, 130, 160, 260
_URI = (
    "minio://mlpipeline/v2/artifacts/spin/e9d94a1b-5138-4b1d-a080-f5ff091e921c/validate-base/6db4a53e-7e2a-4f0c-a1f7/"
)
_TEXTS = ("run_uri", "reference_uri", "policy_uri", "generations_uri", "attempt")


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def patch_chars(task: Any, component: Any, container: Any, config: Any, sections: dict[str, Any]) -> int:
    """Estimated length of a task's pod-spec-patch."""
    outputs = component.get("outputDefinitions", {})
    executor_input = {
        "inputs": {"parameterValues": {name: sample(name, sections) for name in task["inputs"]["parameters"]}},
        "outputs": {
            "parameters": {name: {"outputFile": f"/tmp/kfp/outputs/{name}"} for name in outputs.get("parameters", {})},
            "artifacts": {name: {"artifacts": [{"uri": _URI + name, **value}]} for name, value in artifacts(outputs)},
            "outputFile": "/tmp/kfp_outputs/output_metadata.json",
        },
    }
    escaped = sum(len(json.dumps(compact(value))) for value in (executor_input, component))
    plain = sum(len(compact(container.get(name, []))) for name in ("command", "args", "env"))
    secrets = _SECRET_CHARS * sum(len(secret["keyToEnv"]) for secret in config.get("secretAsEnv", []))
    return _LAUNCHER_CHARS + escaped + plain + secrets + _RESOURCES_CHARS + _SHM_CHARS * ("emptyDirMounts" in config)


def artifacts(outputs: Any) -> Iterator[tuple[str, Any]]:
    """Name and type of each output artifact."""
    for name, artifact in outputs.get("artifacts", {}).items():
        yield name, {"name": name, "metadata": {}, "type": artifact.get("artifactType")}


def sample(name: str, sections: dict[str, Any]) -> Any:
    """A value as long as those of a run."""
    if name in _TEXTS:
        return "s3://mlpipeline/spin/tiny/iterations/0/epochs/0/policy"
    if name == "compiled":
        return {"max_epochs": [2] * 6, "defaults": json.dumps(sections)}
    section = name.removeprefix("settings_")
    return json.dumps(sections[section]) if section in sections else "4"


def measure(title: str, config: str, overrides: list[str]) -> str:
    """One line of the table."""
    settings = load_settings(config, overrides)
    pipeline: Any = build(settings, settings.cluster)
    ir, platform = (json_format.MessageToDict(spec) for spec in (pipeline.pipeline_spec, pipeline.platform_spec))
    configs = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    sections = settings.model_dump(mode="json", exclude={"cluster"})

    def total(graph: Any, times: int) -> tuple[int, int]:
        tasks, size = 0, 0
        for task in graph["dag"]["tasks"].values():
            component = ir["components"][task["componentRef"]["name"]]
            items = json.loads(task["parameterIterator"]["items"]["raw"]) if "parameterIterator" in task else [0]
            count = times * len(items)
            carried = [component, task]
            if "dag" in component:
                inner_tasks, inner = total(component, count)
                graphs = count + times * ("parameterIterator" in task)
                tasks += inner_tasks
                size += inner + graphs * (_DRIVER_NODES * sum(map(len, map(compact, carried))) + _GRAPH_NODE_BYTES)
                continue
            container = ir["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
            pod = configs.get(component["executorLabel"], {})
            carried += [container, pod]
            patch = patch_chars(task, component, container, pod, sections)
            tasks += count
            size += count * (_PATCH_NODES * patch + _DRIVER_NODES * sum(map(len, map(compact, carried))) + _NODE_BYTES)
        return tasks, size

    tasks, size = total(ir["root"], 1)
    spec = len(compact(ir)) + len(compact(platform))
    return f"{title:<32}{tasks:>6}{size / tasks / 1024:>18.1f}{spec / 1024:>12.0f}"


if __name__ == "__main__":
    sys.stdout.write(f"{'':<32}{'tasks':>6}{'nodes, KiB a task':>18}{'spec, KiB':>12}\n")
    for title, (config, overrides) in SHAPES.items():
        sys.stdout.write(measure(title, config, overrides) + "\n")
