"""KFP component: one epoch of training."""

from kfp import dsl

from spin_components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def train_epoch(
    attempt: str, run_uri: str, iteration: int, epoch: int, policy_uri: str, scores_uris: list, hardware: dict
) -> str:
    """Train the policy for one epoch; return the trained policy's URI. See `train_epoch.step`."""
    from spin_components.execution import perform

    return perform(
        "train_epoch.step:train",
        attempt=attempt,
        run_uri=run_uri,
        iteration=iteration,
        epoch=epoch,
        policy_uri=policy_uri,
        scores_uris=scores_uris,
        hardware=hardware,
    )
