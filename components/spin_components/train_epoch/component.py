"""KFP components: train one epoch, in this pod or in several."""

from kfp import dsl
from kfp.dsl.component_task_config import TaskConfigField, TaskConfigPassthrough

from spin_components.images import TRAIN
from spin_components.runtime.kfp_component import component


@component(TRAIN)
def train_epoch(
    attempt: str,
    run_uri: str,
    iteration: int,
    epoch: int,
    policy_uri: str,
    scores_uris: list,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Train the policy for one epoch; return the trained policy's URI. See `train_epoch.step`."""
    from spin_components.runtime.kfp_artifacts import show_training
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt,
        "spin_components.train_epoch.step:train",
        run_uri=run_uri,
        iteration=iteration,
        epoch=epoch,
        policy_uri=policy_uri,
        scores_uris=scores_uris,
    )
    show_training(metrics, run_uri, iteration, epoch, uri)
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
def train_epoch_on_nodes(
    attempt: str,
    run_uri: str,
    iteration: int,
    epoch: int,
    policy_uri: str,
    scores_uris: list,
    template: dict,
    pod: dsl.TaskConfig,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Train the policy for one epoch in a TrainJob; return the trained policy's URI. See `train_epoch.step`."""
    from dataclasses import asdict

    from spin_components.runtime.kfp_artifacts import show_training
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt,
        "spin_components.train_epoch.step:train_on_nodes",
        run_uri=run_uri,
        iteration=iteration,
        epoch=epoch,
        policy_uri=policy_uri,
        scores_uris=scores_uris,
        template=template,
        pod=asdict(pod),
    )
    show_training(metrics, run_uri, iteration, epoch, uri)
    return uri
