"""KFP component: negative log-likelihood of the held-out human answers."""

from kfp import dsl

from spin_components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def validate(attempt: str, run_uri: str, iteration: int, epoch: int, policy_uri: str, hardware: dict) -> str:
    """Validate a policy and pass its URI on; iteration -1 is the base model. See `validate.step`."""
    from spin_components.execution import perform

    return perform(
        "validate.step:validate",
        attempt=attempt,
        run_uri=run_uri,
        iteration=iteration,
        epoch=epoch,
        policy_uri=policy_uri,
        hardware=hardware,
    )
