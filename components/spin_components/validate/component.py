"""KFP component: measure the negative log-likelihood of the held-out human answers."""

from kfp import dsl

from spin_components.images import TRAIN
from spin_components.runtime.kfp_component import component


@component(TRAIN)
def validate(
    attempt: str,
    run_uri: str,
    iteration: int,
    epoch: int,
    policy_uri: str,
    reference_uri: str,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Validate a policy and pass its URI on; iteration -1 is the base model. See `validate.step`."""
    from spin_components.runtime.kfp_artifacts import show_validation
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt,
        "spin_components.validate.step:validate",
        run_uri=run_uri,
        iteration=iteration,
        epoch=epoch,
        policy_uri=policy_uri,
        reference_uri=reference_uri,
    )
    show_validation(metrics, run_uri, iteration, epoch, uri)
    return uri
