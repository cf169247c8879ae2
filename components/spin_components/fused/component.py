"""KFP components of two steps each: a pod that has done the first goes on with the second.

Each step has its own record, events and manifest, as in a pod of its own; a pod that is repeated finds the first done.
"""

from typing import Any

from kfp import dsl

from spin_components.images import GENERATE, TRAIN
from spin_components.runtime.kfp_component import component


@component(GENERATE)
def generate_and_score(attempt: str, run_uri: str, iteration: int, shard: int, reference_uri: str) -> str:
    """Sample answers to one shard's prompts and score the pairs; return the scores' URI.

    See `generate.step` and `ref_logprob.step`.
    """
    from spin_components.runtime.supervisor import run_step

    at: dict[str, Any] = {"run_uri": run_uri, "iteration": iteration, "shard": shard, "reference_uri": reference_uri}
    generations_uri = run_step(attempt, "spin_components.generate.step:generate_shard", **at)
    return run_step(attempt, "spin_components.ref_logprob.step:score_shard", **at, generations_uri=generations_uri)


@component(TRAIN)
def train_and_validate(
    attempt: str,
    run_uri: str,
    iteration: int,
    epoch: int,
    policy_uri: str,
    reference_uri: str,
    scores_uris: list,
    metrics: dsl.Output[dsl.Metrics],
    validation: dsl.Output[dsl.Metrics],
) -> str:
    """Train the policy for one epoch and validate it; return its URI. See `train_epoch.step` and `validate.step`."""
    from spin_components.runtime.kfp_artifacts import show_training, show_validation
    from spin_components.runtime.supervisor import run_step

    at: dict[str, Any] = {"run_uri": run_uri, "iteration": iteration, "epoch": epoch}
    trained_uri = run_step(
        attempt, "spin_components.train_epoch.step:train", **at, policy_uri=policy_uri, scores_uris=scores_uris
    )
    show_training(metrics, run_uri, iteration, epoch, trained_uri)
    uri = run_step(
        attempt, "spin_components.validate.step:validate", **at, policy_uri=trained_uri, reference_uri=reference_uri
    )
    show_validation(validation, run_uri, iteration, epoch, uri)
    return uri
