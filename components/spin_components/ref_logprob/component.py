"""KFP component: log-probabilities of both answers of each pair under the reference, as two float32 sums."""

from spin_components.images import TRAIN
from spin_components.runtime.kfp_component import component


@component(TRAIN)
def ref_logprob(
    attempt: str, run_uri: str, iteration: int, shard: int, reference_uri: str, generations_uri: str
) -> str:
    """Score both answers of every pair of a shard; return the scores' URI. See `ref_logprob.step`."""
    from spin_components.runtime.supervisor import run_step

    return run_step(
        attempt,
        "spin_components.ref_logprob.step:score_shard",
        run_uri=run_uri,
        iteration=iteration,
        shard=shard,
        reference_uri=reference_uri,
        generations_uri=generations_uri,
    )
