"""KFP component: sample an answer to each prompt from the reference."""

from spin_components.images import GENERATE
from spin_components.runtime.kfp_component import component


@component(GENERATE)
def generate(attempt: str, run_uri: str, iteration: int, shard: int, reference_uri: str) -> str:
    """Sample answers to one shard's prompts; return the shard's URI. See `generate.step`."""
    from spin_components.runtime.supervisor import run_step

    return run_step(
        attempt,
        "spin_components.generate.step:generate_shard",
        run_uri=run_uri,
        iteration=iteration,
        shard=shard,
        reference_uri=reference_uri,
    )
