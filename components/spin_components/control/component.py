"""KFP components: fine-tune on the human answers of an iteration, in this pod or in several."""

from kfp import dsl
from kfp.dsl.component_task_config import TaskConfigField, TaskConfigPassthrough

from spin_components.images import TRAIN
from spin_components.runtime.kfp_component import component


@component(TRAIN)
def control(
    attempt: str, run_uri: str, iteration: int, start_uri: str, after: str, metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Train the control of an iteration; return its policy's URI. See `control.step`.

    `after` is an output of the tasks that must be over before; KFP orders tasks by their inputs.
    """
    from spin_components.runtime.kfp_artifacts import show_control
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt,
        "spin_components.control.step:control",
        is_optional=True,
        run_uri=run_uri,
        iteration=iteration,
        start_uri=start_uri,
    )
    show_control(metrics, run_uri, iteration, uri)
    return uri


@component(
    TRAIN,
    task_config_passthroughs=[
        TaskConfigField.RESOURCES,
        TaskConfigField.KUBERNETES_TOLERATIONS,
        TaskConfigField.KUBERNETES_NODE_SELECTOR,
        TaskConfigField.KUBERNETES_AFFINITY,
        TaskConfigPassthrough(field=TaskConfigField.ENV, apply_to_task=True),
        TaskConfigPassthrough(field=TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
    ],
)
def control_on_nodes(
    attempt: str,
    run_uri: str,
    iteration: int,
    start_uri: str,
    after: str,
    template: dict,
    pod: dsl.TaskConfig,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Train the control of an iteration; return its policy's URI. Trains in TrainJobs. See `control.step`."""
    from dataclasses import asdict

    from spin_components.runtime.kfp_artifacts import show_control
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt,
        "spin_components.control.step:train_on_nodes",
        is_optional=True,
        run_uri=run_uri,
        iteration=iteration,
        start_uri=start_uri,
        template=template,
        pod=asdict(pod),
    )
    show_control(metrics, run_uri, iteration, uri)
    return uri
