"""The compiled pipeline as Kubeflow's UI shows it, and as Argo stores it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import json_format

from spin_components.prepare.pods import pod_requests
from spin_components.runtime.task import MODULES
from spin_components.settings.settings import Settings
from spin_pipeline.config import load_settings
from spin_pipeline.dag import build, shape_of
from spin_pipeline.deploy.compiled_spec import ENTRY
from spin_pipeline.deploy.pod_parameters import PODS, graphs
from support.kfp_driver import resolve

SHAPES = [
    [],
    ["spin.max_epochs=[1, 2]"],
    ["spin.max_epochs=[2, 1]", "generation.shards=3"],
    ["spin.max_iterations=3", "spin.max_epochs=1", "generation.shards=2", "evaluation.tasks=['arc_easy']"],
    ["spin.max_iterations=1", "hardware.nodes=2", "hardware.ranks=1"],
    ["generation.shards=2", "cluster.fuse=['ref-logprob', 'validate']"],
]
IDS = ["plain", "epochs", "shards", "evaluate", "nodes", "fused"]


def compiled(*overrides: str) -> dict[str, Any]:
    settings = load_settings("tiny", overrides)
    ir: dict[str, Any] = json_format.MessageToDict(build(settings, settings.cluster).pipeline_spec)
    return ir


def shown(ir: dict[str, Any], graph: dict[str, Any], layers: tuple[str, ...] = ("root",)) -> Iterator[Any]:
    """Layers, task key, display name and artifacts of every task that the UI's graph has."""
    for key, task in graph["dag"]["tasks"].items():
        component = ir["components"][task["componentRef"]["name"]]
        artifacts = component.get("outputDefinitions", {}).get("artifacts", {})
        yield layers, key, task["taskInfo"]["name"], tuple(artifacts)
        if "dag" in component:
            yield from shown(ir, component, (*layers, key))


@pytest.mark.parametrize("overrides", SHAPES, ids=IDS)
def test_every_task_has_a_key_of_its_own_and_a_loop_is_used_once(overrides: list[str]) -> None:
    ir = compiled(*overrides)
    tasks = list(shown(ir, ir["root"]))
    assert max(Counter(key for _, key, _, _ in tasks).values()) == 1
    iterated = Counter(
        task["componentRef"]["name"]
        for graph in graphs(ir)
        for task in graph["dag"]["tasks"].values()
        if "parameterIterator" in task
    )
    assert len(iterated) == load_settings("tiny", overrides).spin.max_iterations
    assert set(iterated.values()) == {1}


def test_artifacts_of_each_iteration_are_found_by_task_key_and_name() -> None:
    ir = compiled("generation.shards=3")
    found = {(key, name) for _, key, _, artifacts in shown(ir, ir["root"]) for name in artifacts}
    checkpoint = ("model", "metrics", "samples", "report")
    assert found == {
        ("prepare", "dataset"),
        ("validate-base", "metrics"),
        *((f"checkpoint-{t}", name) for t in range(2) for name in checkpoint),
        *(
            (f"{step}-{t}-{epoch}", "metrics")
            for step in ("train-epoch", "validate")
            for t in (0, 1)
            for epoch in (0, 1)
        ),
        *(("result", name) for name in ("best_model", "final_metrics", "final_report")),
    }


def test_no_artifact_is_made_within_a_loop() -> None:
    ir = compiled("generation.shards=3")
    assert not [key for layers, key, _, artifacts in shown(ir, ir["root"]) if "shards" in layers[-1] and artifacts]


def test_names_in_the_graph_are_for_people() -> None:
    ir = compiled()
    names = {key: (layers[-1], name) for layers, key, name, _ in shown(ir, ir["root"])}
    assert names["self-play"] == ("root", "self-play")
    assert names["result"] == ("root", "result")
    assert names["iteration-0"] == ("self-play", "iteration 0")
    assert names["iteration-1-if-0-may-go-on"] == ("self-play", "iteration 1 if 0 may go on")
    assert names["iteration-1"] == ("iteration-1-if-0-may-go-on", "iteration 1")
    assert names["iteration-1-shards"] == ("iteration-1", "iteration 1: shards")
    assert names["train-epoch-1-0"] == ("iteration-1", "iteration 1: train epoch 0")
    assert names["validate-base"] == ("self-play", "base model: validate")


def test_the_result_is_shown_also_where_a_task_failed() -> None:
    ir = compiled("evaluation.tasks=['arc_easy']", "warm_up.max_epochs=1", "control.sft=true")
    outside = {key for layers, key, _, _ in shown(ir, ir["root"]) if "self-play" not in layers}
    assert outside == {"prepare", "self-play", "result"}  # the exit task runs once `self-play` has begun
    result = ir["root"]["dag"]["tasks"]["result"]
    assert result["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert result["dependentTasks"] == ["self-play"]


def test_prepare_returns_two_addresses_what_pods_request_and_the_shards() -> None:
    outputs = compiled()["components"]["comp-prepare"]["outputDefinitions"]["parameters"]
    assert {name: value["parameterType"] for name, value in outputs.items()} == {
        "run_uri": "STRING",
        "policy_uri": "STRING",
        "pods": "STRUCT",
        "shards": "LIST",
    }


def test_the_loop_over_shards_goes_over_the_list_that_prepare_returns_where_it_chooses_their_number() -> None:
    ir = compiled("generation.shards=0", "spin.max_iterations=2")
    for t in range(2):
        loop = ir["components"][f"comp-iteration-{t}"]["dag"]["tasks"][f"iteration-{t}-shards"]
        items = loop["parameterIterator"]["items"]["inputParameter"]
        assert loop["inputs"]["parameters"][items] == {"componentInputParameter": "shards"}
    loop = compiled()["components"]["comp-iteration-0"]["dag"]["tasks"]["iteration-0-shards"]
    assert "raw" in loop["parameterIterator"]["items"], "a number that is set is fixed"


@pytest.mark.parametrize("overrides", SHAPES, ids=IDS)
def test_inputs_of_tasks_are_few_and_values(overrides: list[str]) -> None:
    settings = load_settings("tiny", overrides)
    pipeline: Any = build(settings, settings.cluster)
    ir, platform = (json_format.MessageToDict(spec) for spec in (pipeline.pipeline_spec, pipeline.platform_spec))
    table = pod_requests(settings.model_dump(mode="json", include=set(Settings.model_fields)))
    of_pod = {f"pipelinechannel--{name}" for name in ("cpu", "memory", "gpu_type", "gpus")}
    for task in resolve(ir, platform, {"prepare": {PODS: table}}):
        if task.key in ("prepare", "result"):
            continue
        assert not [name for name, value in task.inputs.items() if "{{" in str(value)], task.key
        # at most: attempt, run, iteration, epoch, policy, reference, scores, the template of a TrainJob
        assert len(task.inputs.keys() - of_pod) <= 7 + ("template" in task.inputs), task.key
        assert task.key.startswith("checkpoint") or of_pod <= task.inputs.keys(), task.key


def test_inputs_of_graphs_are_named_after_what_they_are() -> None:
    ir = compiled("generation.shards=3", "warm_up.max_epochs=1", "control.sft=true")
    named = {name for graph in graphs(ir) for name in graph.get("inputDefinitions", {}).get("parameters", {})} - ir[
        "root"
    ]["inputDefinitions"]["parameters"].keys()
    assert {name for name in named if "pipelinechannel" in name} == {
        "pipelinechannel--iteration-0-Output",  # compared by a condition
        "pipelinechannel--loop-item-param-1",
    }
    assert {"policy_uri", "reference_uri", "pods", "node_selector", "tolerations", "affinity"} <= named


def test_tasks_of_a_cluster_name_their_function_and_do_not_carry_its_source() -> None:
    ir = compiled("hardware.nodes=2", "hardware.ranks=1", "evaluation.tasks=['arc_easy']")
    for name, executor in ir["deploymentSpec"]["executors"].items():
        container = executor["container"]
        assert container["command"] == ENTRY, name
        assert container["args"][:3] == ["--executor_input", "{{$}}", "--function_to_execute"]
        assert container["args"][3] in MODULES


def test_tasks_after_prepare_carry_no_settings() -> None:
    ir = compiled()
    for name, component in ir["components"].items():
        inputs = component.get("inputDefinitions", {}).get("parameters", {})
        if "executorLabel" in component and name != "comp-prepare":
            assert not {input_ for input_, value in inputs.items() if value["parameterType"] == "STRUCT"}, name


def test_the_number_of_tasks_follows_from_the_shape() -> None:
    for overrides in SHAPES:
        ir, settings = compiled(*overrides), load_settings("tiny", overrides)
        shards = settings.generation.shards
        containers = [
            shards if "shards" in layers[-1] else 1
            for layers, key, _, _ in shown(ir, ir["root"])
            if "executorLabel" in ir["components"][component_of(ir, layers, key)]
        ]
        assert shape_of(settings, settings.cluster).num_tasks == sum(containers)


def component_of(ir: dict[str, Any], layers: tuple[str, ...], key: str) -> str:
    """Name of a task's component."""
    (name,) = {
        graph["dag"]["tasks"][key]["componentRef"]["name"] for graph in graphs(ir) if key in graph["dag"]["tasks"]
    }
    return str(name)


def test_defaults_are_the_compiled_configuration() -> None:
    prepare = compiled("training.lr=0.5")["root"]["dag"]["tasks"]["prepare"]["inputs"]["parameters"]
    constant = prepare["compiled"]["runtimeValue"]["constant"]
    assert json.loads(constant["defaults"])["training"]["lr"] == 0.5
    assert constant["max_epochs"] == [2.0, 2.0]


def test_the_description_says_what_each_task_does_and_how_to_resume() -> None:
    settings = load_settings("tiny", ["spin.max_epochs=[1, 2]"])
    text = build(settings, settings.cluster).pipeline_spec.pipeline_info.description
    for step in ("prepare", "validate", "generate", "ref-logprob", "train epoch", "checkpoint", "evaluate", "result"):
        assert f"\n{step} " in text or f"; {step} " in text, step
    assert "up to 2 iterations, epochs 1, 2, shards 1, nodes 1; base model builtin:tiny-llama" in text
    assert "{id} in run_uri is KFP's id of the run" in text
    assert "To resume a run" in text
