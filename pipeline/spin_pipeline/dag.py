"""The self-play loop as a Kubeflow pipeline.

    prepare -> self-play -> result

    self-play:
        validate the base -> [warm-up -> validate] ->
        iteration 0 -> If(next != "") iteration 1 -> If(next != "") iteration 2 ...
        evaluate, if configured: no other task depends on it, unless its results decide (`selection.measure`)
        control t -> validate, after iteration t, if configured: no iteration depends on them

    iteration(t, reference):
        [generate -> ref-logprob] for each shard, in parallel
        train-epoch 0 -> validate -> train-epoch 1 -> validate ...
        evaluate, if its results decide: in iteration 0 also the base model and the warm-up, beside its training
        checkpoint -> URI of the next reference, or "" to stop

The reference of iteration t + 1 is the return value of iteration t: the immutable address of a model, as a string. KFP
cannot loop over tasks that depend on each other, so the iterations are nested at compile time; fewer may run. `result`
is an exit task: it shows what came out of the run also where a task failed.
`kfp dsl compile --py dag.py --output spin.yaml` compiles `spin`, the pipeline of the demo configuration.
"""

import json
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from spin_components.control.component import control, control_on_nodes
from spin_components.evaluate.component import evaluate
from spin_components.prepare.component import prepare
from spin_components.result.component import result
from spin_components.settings.form import form_defaults
from spin_components.settings.settings import Settings
from spin_components.store.layout import BASE, WARM_UP
from spin_components.store.layout import control as number_of_control
from spin_components.validate.component import validate
from spin_components.warm_up.component import warm_up, warm_up_on_nodes
from spin_pipeline.config import load_settings
from spin_pipeline.deploy.caller_names import callers_without_source
from spin_pipeline.deploy.cluster_settings import ClusterSettings
from spin_pipeline.deploy.compiled_spec import finish
from spin_pipeline.deploy.descriptions import describe_pipeline
from spin_pipeline.deploy.placement import Placement
from spin_pipeline.deploy.pod_parameters import PODS
from spin_pipeline.deploy.workflow_size import most_tasks
from spin_pipeline.iteration import ATTEMPT, Shape, iteration_pipeline, result_of, task_of, trainer

CREATED = dsl.PIPELINE_JOB_CREATE_TIME_UTC_PLACEHOLDER
"""When KFP created the pipeline run; fills in `{time}` in `run_uri`."""


def shape_of(settings: Settings, cluster: ClusterSettings | None = None, *, parallelism: int = 0) -> Shape:
    """The numbers of tasks of a configuration.

    They follow from `spin.max_iterations`, `spin.max_epochs`, `generation.shards`, `hardware.nodes`, whether
    `[evaluation]` names tasks or a judge, whether `selection.measure` is one of its results, whether there are a
    warm-up and controls, and `cluster.fuse`.

    Args:
        settings: the configuration.
        cluster: the cluster that it will run on; None for this machine.
        parallelism: number of shards that run at the same time; 0 for all.
    """
    return Shape(
        settings.spin.max_iterations,
        tuple(settings.spin.epochs(t) for t in range(settings.spin.max_iterations)),
        settings.generation.shards,
        parallelism,
        settings.hardware.nodes,
        settings.evaluation.is_on,
        settings.warm_up.is_on,
        settings.control.sft,
        settings.selection.waits_for_evaluation,
        frozenset(cluster.fuse if cluster else ()),
        most_tasks=most_tasks() if cluster else None,
    )


@callers_without_source()
def build(settings: Settings, cluster: ClusterSettings | None = None, *, parallelism: int = 0) -> GraphComponent:
    """Build the pipeline of a configuration, with the settings as the defaults of its parameters.

    Args:
        settings: the configuration; see `shape_of`.
        cluster: the cluster that it will run on; None for this machine.
        parallelism: number of shards that run at the same time; 0 for all.
    """
    shape = shape_of(settings, cluster, parallelism=parallelism)
    placer = Placement(cluster, settings.run.name)
    iterations = [iteration_pipeline(shape, t, placer) for t in range(shape.max_iterations)]
    sections = settings.model_dump(mode="json", include=set(Settings.model_fields))
    compiled = {**shape.as_compiled(), "defaults": json.dumps(sections)}
    defaults = form_defaults(settings)

    @dsl.pipeline(name="spin", description=describe_pipeline(settings, shape.max_iterations))
    def spin(
        base_model: str = defaults["base_model"],
        beta: str = defaults["beta"],
        data_train: str = defaults["data_train"],
        data_validation: str = defaults["data_validation"],
        epochs: str = defaults["epochs"],
        global_batch_size: int = defaults["global_batch_size"],
        gpu_type: str = defaults["gpu_type"],
        gpus_generate: int = defaults["gpus_generate"],
        gpus_train: int = defaults["gpus_train"],
        learning_rate: str = defaults["learning_rate"],
        max_iterations: int = defaults["max_iterations"],
        max_new_tokens: int = defaults["max_new_tokens"],
        max_time: str = defaults["max_time"],
        run_uri: str = defaults["run_uri"],
        seed: int = defaults["seed"],
        settings_control: str = "{}",
        settings_data: str = "{}",
        settings_evaluation: str = "{}",
        settings_generation: str = "{}",
        settings_hardware: str = "{}",
        settings_lora: str = "{}",
        settings_model: str = "{}",
        settings_objective: str = "{}",
        settings_placement: str = "{}",
        settings_run: str = "{}",
        settings_selection: str = "{}",
        settings_spin: str = "{}",
        settings_tracking: str = "{}",
        settings_training: str = "{}",
        settings_validation: str = "{}",
        settings_warm_up: str = "{}",
    ) -> None:
        form = locals()
        form = {name: form[name] for name in defaults}
        identity = {"attempt": ATTEMPT, "created": CREATED if cluster else ""}  # unknown to KFP's local runner
        shown = placer.light(task_of(result, None, **identity, run_uri=run_uri), retry=False)
        prepared = placer.light(task_of(prepare, None, **identity, **form, compiled=compiled), retry=False)
        address, pods = prepared.outputs["run_uri"], prepared.outputs[PODS]
        at = {"attempt": ATTEMPT, "run_uri": address}
        chosen = {} if shape.shards else {"shards": prepared.outputs["shards"]}

        def add_evaluation(t: int, after: Any) -> None:
            """Add the evaluation of the model that iteration t published; t is `BASE` for the base model.

            Where its results decide, it is a task of the iteration.
            """
            if shape.evaluates and not shape.decides:
                evaluated = task_of(evaluate, "base" if t == BASE else t, **at, iteration=t, after=after)
                placer.with_model(evaluated, pods)

        def add_warm_up(base_uri: Any) -> Any:
            """Add the warm-up and its validation; returns the address of its policy."""
            warmed = task_of(trainer(shape, placer, warm_up, warm_up_on_nodes), None, **at, base_uri=base_uri)
            placer.with_model(warmed, pods)
            return add_validation("warm-up", WARM_UP, result_of(warmed))

        def add_validation(name: str, number: int, policy: Any) -> Any:
            """Add the validation of a policy that is no iteration's; returns its address."""
            validated = task_of(validate, name, **at, iteration=number, epoch=0, policy_uri=policy, reference_uri="")
            placer.with_model(validated, pods)
            return result_of(validated)

        def add_control(t: int, start: Any, after: Any) -> None:
            """Add the control of iteration t and its validation.

            A later one finds the control that it begins from in storage: as an input of the next iteration's condition
            it would hold that up.
            """
            step = trainer(shape, placer, control, control_on_nodes)
            trained = task_of(step, t, **at, iteration=t, start_uri=start, after=after)
            placer.with_model(trained, pods)
            number = number_of_control(t)
            validated = add_validation(f"control-{t}", number, result_of(trained))
            if shape.decides:
                evaluated = task_of(evaluate, f"control-{t}", **at, iteration=number, after=validated)
                placer.with_model(evaluated, pods)

        def add_iteration(t: int, reference: Any, start: Any) -> None:
            """Add iteration t and, nested in a condition on its result, those after it; `start` is the controls'."""
            played = iterations[t](run_uri=address, reference_uri=reference, pods=pods, **chosen)
            played.set_display_name(f"iteration {t}")
            add_evaluation(t, played.output)
            if shape.controls:
                add_control(t, start, played.output)
            if t + 1 < shape.max_iterations:
                with dsl.If(played.output != "", name=f"iteration {t + 1} if {t} may go on"):
                    add_iteration(t + 1, played.output, start)

        with dsl.ExitHandler(shown, name="self-play"):
            base_uri = add_validation("base", BASE, prepared.outputs["policy_uri"])
            add_evaluation(BASE, base_uri)
            reference = add_warm_up(base_uri) if shape.warms_up else base_uri
            add_iteration(0, reference, reference)

    finish(spin.pipeline_spec, spin.platform_spec, has_images=cluster is not None)
    return spin


_DEMO = load_settings()
spin = build(_DEMO, _DEMO.cluster)
