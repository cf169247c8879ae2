from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from spin_pipeline.config import load_settings
from spin_pipeline.dag import build, shape_of, spin

DAG = Path(__file__).parents[2] / "pipeline" / "spin_pipeline" / "dag.py"


def compiled(max_iterations: int, max_epochs: int | list[int], shards: int = 1) -> dict[str, Any]:
    """The pipeline's IR as plain values."""
    overrides = [
        f"spin.max_iterations={max_iterations}",
        f"spin.max_epochs={max_epochs}",
        f"generation.shards={shards}",
    ]
    return ir_of(build(load_settings("tiny", overrides)))


def ir_of(pipeline: Any) -> dict[str, Any]:
    ir: dict[str, Any] = json_format.MessageToDict(pipeline.pipeline_spec)
    return ir


def tasks(ir: dict[str, Any], component: dict[str, Any] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of the function and spec of every container task, including nested graphs."""
    graph = (component or ir["root"])["dag"]["tasks"]
    for task in graph.values():
        inner = ir["components"][task["componentRef"]["name"]]
        if "dag" in inner:
            yield from tasks(ir, inner)
        else:
            container = ir["deploymentSpec"]["executors"][inner["executorLabel"]]["container"]
            yield container["args"][-1], task  # --function_to_execute NAME


def test_the_loop_has_every_task_of_four_iterations_of_two_epochs() -> None:
    # prepare, validation of the base and result once; 4 iterations of 2 epochs with one train and one validate each
    assert Counter(name for name, _ in tasks(compiled(4, 2))) == {
        "prepare": 1,
        "validate": 1 + 4 * 2,
        "generate": 4,
        "ref_logprob": 4,
        "train_epoch": 4 * 2,
        "checkpoint": 4,
        "result": 1,
    }


def test_each_iteration_has_its_number_of_epochs() -> None:
    names = Counter(
        task["taskInfo"]["name"].partition(":")[0]
        for name, task in tasks(compiled(4, [2, 2, 1, 2]))
        if name == "train_epoch"
    )
    assert names == {"iteration 0": 2, "iteration 1": 2, "iteration 2": 1, "iteration 3": 2}


def test_the_compiled_numbers_of_epochs_are_passed_to_prepare() -> None:
    for epochs, expected in ((2, [2.0, 2.0, 2.0]), ([2, 2, 1], [2.0, 2.0, 1.0])):
        (values,) = [task["inputs"]["parameters"] for name, task in tasks(compiled(3, epochs)) if name == "prepare"]
        assert values["compiled"]["runtimeValue"]["constant"]["max_epochs"] == expected


def test_a_single_iteration_has_no_condition() -> None:
    ir = compiled(1, 1)
    assert len(list(tasks(ir))) == 8
    graphs = [ir["root"], *(component for component in ir["components"].values() if "dag" in component)]
    policies = [task.get("triggerPolicy", {}) for graph in graphs for task in graph["dag"]["tasks"].values()]
    assert not any("condition" in policy for policy in policies)


def test_each_iteration_after_the_first_waits_for_an_address() -> None:
    ir = compiled(4, 1)
    graphs = [ir["root"], *(component for component in ir["components"].values() if "dag" in component)]
    conditions = [
        task["triggerPolicy"]["condition"]
        for graph in graphs
        for task in graph["dag"]["tasks"].values()
        if "condition" in task.get("triggerPolicy", {})
    ]
    assert len(conditions) == 3
    assert all(condition.endswith("Output'] != ''") for condition in conditions)


def test_caching_is_off_for_every_task() -> None:
    for name, task in tasks(compiled(4, 2)):
        assert not task["cachingOptions"].get("enableCache", False), name


def test_shards_change_the_loop_and_not_the_number_of_tasks() -> None:
    one, many = compiled(1, 1), compiled(1, 1, shards=5)
    assert Counter(name for name, _ in tasks(one)) == Counter(name for name, _ in tasks(many))
    assert '"5"' not in str(one)
    loops = [
        task["parameterIterator"]["items"]["raw"]
        for component in many["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "parameterIterator" in task
    ]
    assert loops == ["[0, 1, 2, 3, 4]"]


def evaluating(*overrides: str) -> dict[str, Any]:
    return ir_of(build(load_settings("tiny", ["spin.max_iterations=3", *overrides])))


def test_models_are_evaluated_only_if_evaluation_is_configured() -> None:
    assert not [name for name, _ in tasks(evaluating()) if name == "evaluate"]
    assert "evaluate" not in str(evaluating()["components"].keys() | evaluating()["deploymentSpec"]["executors"].keys())
    for overrides in (
        ["evaluation.tasks=['arc_easy']"],
        ["evaluation.judge_url=http://j/v1", "evaluation.judge_model=j"],
    ):
        names = [task["taskInfo"]["name"] for name, task in tasks(evaluating(*overrides)) if name == "evaluate"]
        assert sorted(names) == ["base model: evaluate", *(f"iteration {t}: evaluate" for t in range(3))]


def test_no_step_depends_on_an_evaluation_which_depends_on_its_model_only() -> None:
    ir = evaluating("evaluation.tasks=['arc_easy']")
    graphs = [ir["root"], *(component for component in ir["components"].values() if "dag" in component)]
    dependencies = []
    for graph in graphs:
        for name, task in graph["dag"]["tasks"].items():
            needed = task.get("dependentTasks", [])
            assert not [other for other in needed if other.startswith("evaluate")], name
            if name.startswith("evaluate"):
                dependencies.append(sorted(other.rstrip("-0123456789") for other in needed))
    assert sorted(dependencies) == [*[["iteration"]] * 3, ["validate-base"]]


def test_prepare_knows_whether_models_are_evaluated() -> None:
    for overrides, expected in (([], False), (["evaluation.tasks=['arc_easy']"], True)):
        (values,) = [task["inputs"]["parameters"] for name, task in tasks(evaluating(*overrides)) if name == "prepare"]
        assert values["compiled"]["runtimeValue"]["constant"]["evaluates"] is expected


JUDGED = ["evaluation.judge_url=http://j/v1", "evaluation.judge_model=j", "selection.measure=judge"]


def dependencies(ir: dict[str, Any], component: str) -> dict[str, set[str]]:
    """The tasks of a nested graph that each of its tasks depends on."""
    graph = ir["components"][component]["dag"]["tasks"]
    return {name: set(task.get("dependentTasks", [])) for name, task in graph.items()}


def test_a_verdict_that_the_evaluation_decides_waits_for_those_of_its_model_and_of_the_first_reference() -> None:
    ir = evaluating(*JUDGED, "spin.max_epochs=2")
    first, second = (dependencies(ir, f"comp-iteration-{t}") for t in (0, 1))
    assert first["evaluate-base"] == set(), "beside the training"
    assert first["evaluate-0"] == {"evaluate-base", "validate-0-1"}
    assert first["checkpoint-0"] == {"evaluate-0"}
    assert first["train-epoch-0-0"] == {"iteration-0-shards"}
    assert (second["evaluate-1"], second["checkpoint-1"]) == ({"validate-1-1"}, {"evaluate-1"})
    assert not [name for name in dependencies(ir, "comp-self-play") if name.startswith("evaluate")]
    names = Counter(name for name, _ in tasks(ir))
    assert names["evaluate_to_decide"] == 1 + 3
    assert (
        sum(names.values())
        == shape_of(load_settings("tiny", ["spin.max_iterations=3", *JUDGED, "spin.max_epochs=2"])).num_tasks
    )


def test_the_warm_up_is_evaluated_as_the_first_reference_and_controls_beside_what_comes_next() -> None:
    overrides = [*OVERRIDES, *JUDGED, "cluster.fuse=['ref-logprob','validate']"]
    settings = load_settings("tiny", overrides)
    ir = ir_of(build(settings, settings.cluster))
    first = dependencies(ir, "comp-iteration-0")
    assert first["evaluate-warm-up"] == {"evaluate-base"}
    assert first["evaluate-0"] == {"evaluate-warm-up", "train-and-validate-0-0"}
    assert dependencies(ir, "comp-self-play")["evaluate-control-0"] == {"validate-control-0"}
    names = Counter(name for name, _ in tasks(ir))
    assert (names["evaluate_to_decide"], names["evaluate"]) == (2 + 2, 2)
    assert sum(names.values()) == shape_of(settings, settings.cluster).num_tasks
    shown = {task["taskInfo"]["name"] for name, task in tasks(ir) if name.startswith("evaluate")}
    assert shown == {
        *("base model: evaluate", "warm-up: evaluate", "iteration 0: evaluate", "iteration 1: evaluate"),
        *("control of iteration 0: evaluate", "control of iteration 1: evaluate"),
    }


@pytest.mark.parametrize("measure", ["nll", "chrf", "match"])
def test_other_measures_leave_the_pipeline_as_it_is(measure: str) -> None:
    overrides = ["spin.max_iterations=2", *JUDGED[:2]]
    settings, plain = (
        load_settings("tiny", [*overrides, f"selection.measure={measure}"]),
        load_settings("tiny", overrides),
    )
    defaults = {"selection": settings.selection}
    assert shape_of(settings) == shape_of(plain)
    assert "decides" not in shape_of(settings).as_compiled()
    for cluster in (None, settings.cluster):
        assert ir_of(build(plain.model_copy(update=defaults), cluster)) == ir_of(build(settings, cluster))
    ir = ir_of(build(settings, settings.cluster))
    assert "evaluate_to_decide" not in {name for name, _ in tasks(ir)}


def test_prepare_knows_whether_verdicts_wait_for_the_evaluation() -> None:
    (values,) = [task["inputs"]["parameters"] for name, task in tasks(evaluating(*JUDGED)) if name == "prepare"]
    assert values["compiled"]["runtimeValue"]["constant"]["decides"] is True


OVERRIDES = ["spin.max_iterations=2", "spin.max_epochs=1", "warm_up.max_epochs=3", "control.sft=true"]


def tuned() -> dict[str, Any]:
    """The IR of two iterations of one epoch with a warm-up and controls."""
    return ir_of(build(load_settings("tiny", OVERRIDES)))


def test_a_warm_up_and_controls_are_tasks_only_where_they_are_on() -> None:
    names = Counter(name for name, _ in tasks(tuned()))
    # validations: base, warm-up, two iterations, two controls
    assert (names["warm_up"], names["control"], names["validate"]) == (1, 2, 6)
    assert sum(names.values()) == shape_of(load_settings("tiny", OVERRIDES)).num_tasks
    assert not {"warm_up", "control"} & {name for name, _ in tasks(compiled(2, 1))}
    assert shape_of(load_settings("tiny")).as_compiled().keys().isdisjoint({"warms_up", "controls"})


def test_iteration_0_and_its_control_begin_from_the_warm_up_and_no_iteration_waits_for_a_control() -> None:
    loop = next(value for name, value in tuned()["components"].items() if name == "comp-self-play")["dag"]["tasks"]
    produced = {
        name: {
            parameter["taskOutputParameter"]["producerTask"]
            for parameter in task["inputs"]["parameters"].values()
            if "taskOutputParameter" in parameter
        }
        for name, task in loop.items()
    }
    assert produced["iteration-0"] == {"validate-warm-up"}
    assert produced["control-0"] == {"validate-warm-up", "iteration-0"}
    assert produced["iteration-1-if-0-may-go-on"] == {"iteration-0", "validate-warm-up"}


def test_a_warm_up_on_several_nodes_trains_in_a_trainjob() -> None:
    settings = load_settings("tiny", [*OVERRIDES, "hardware.nodes=2"])
    names = {name for name, _ in tasks(ir_of(build(settings, settings.cluster)))}
    assert {"warm_up_on_nodes", "control_on_nodes", "train_epoch_on_nodes"} <= names


def test_no_component_installs_anything_when_it_starts() -> None:
    assert "pip install" not in str(compiled(2, 2))


def test_the_pipeline_of_the_module_is_the_demo() -> None:
    demo = load_settings("demo")
    assert ir_of(spin) == ir_of(build(demo, demo.cluster))


def test_building_imports_no_torch() -> None:
    code = (
        "import sys; from spin_pipeline.dag import build; from spin_pipeline.config import load_settings\n"
        "build(load_settings('demo'))\n"
        "print(*[name for name in ('torch', 'transformers', 'vllm', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_kfps_own_command_compiles_the_module(tmp_path: Path) -> None:
    output = tmp_path / "spin.yaml"
    command = [str(Path(sys.executable).with_name("kfp")), "dsl", "compile", "--py", str(DAG), "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    assert 10_000 < output.stat().st_size < 200 * 1024


@pytest.mark.parametrize(("max_iterations", "max_epochs", "limit_kib"), [(4, 2, 200), (3, 1, 100)])
def test_the_compiled_pipeline_is_small(tmp_path: Path, max_iterations: int, max_epochs: int, limit_kib: int) -> None:
    from spin_pipeline.cli import main

    output = tmp_path / "new" / "spin.yaml"
    sets = [f"--set=spin.max_iterations={max_iterations}", f"--set=spin.max_epochs={max_epochs}"]
    assert main(["compile", "--config", "tiny", *sets, "-o", str(output)]) == 0
    assert output.stat().st_size < limit_kib * 1024


@pytest.mark.parametrize("name", ["zephyr-7b", "70b"])
def test_configurations_of_large_models_compile(name: str) -> None:
    settings = load_settings(name)
    ir = build(settings, settings.cluster).pipeline_spec
    assert ir.root.dag.tasks
