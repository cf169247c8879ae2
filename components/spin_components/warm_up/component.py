"""KFP components: fine-tune the base model on the human answers, in this pod or in several."""

from kfp import dsl
from kfp.dsl.component_task_config import TaskConfigField, TaskConfigPassthrough

from spin_components.images import TRAIN
from spin_components.runtime.kfp_component import component


@component(TRAIN)
def warm_up(attempt: str, run_uri: str, base_uri: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Fine-tune the base model; return the URI of iteration 0's reference. See `warm_up.step`."""
    from spin_components.runtime.kfp_artifacts import show_warm_up
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt,
        "spin_components.warm_up.step:warm_up",
        run_uri=run_uri,
        base_uri=base_uri,
    )
    show_warm_up(metrics, run_uri, uri)
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
def warm_up_on_nodes(
    attempt: str,
    run_uri: str,
    base_uri: str,
    template: dict,
    pod: dsl.TaskConfig,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Fine-tune the base model; return the URI of iteration 0's reference. Trains in TrainJobs. See `warm_up.step`."""
    from dataclasses import asdict

    from spin_components.runtime.kfp_artifacts import show_warm_up
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt,
        "spin_components.warm_up.step:train_on_nodes",
        run_uri=run_uri,
        base_uri=base_uri,
        template=template,
        pod=asdict(pod),
    )
    show_warm_up(metrics, run_uri, uri)
    return uri
