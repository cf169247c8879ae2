"""KFP component: sample an answer to each prompt from the reference."""

from kfp import dsl

from spin_components.images import GENERATE


@dsl.component(base_image=GENERATE, install_kfp_package=False)
def generate(
    attempt: str,
    run_uri: str,
    iteration: int,
    shard: int,
    reference_uri: str,
    hardware: dict,
    samples: dsl.Output[dsl.Markdown],
) -> str:
    """Sample answers to one shard's prompts; return the shard's URI. See `generate.step`."""
    from spin_components.runtime.kfp_artifacts import show_samples
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt,
        "spin_components.generate.step:generate_shard",
        run_uri=run_uri,
        iteration=iteration,
        shard=shard,
        reference_uri=reference_uri,
        hardware=hardware,
    )
    show_samples(samples, run_uri, iteration, shard, uri)
    return uri
