"""KFP component: publish an iteration's policy and decide whether the run goes on."""

from kfp import dsl

from spin_components.images import CPU
from spin_components.runtime.kfp_component import component


@component(CPU)
def checkpoint(
    attempt: str,
    run_uri: str,
    iteration: int,
    reference_uri: str,
    policy_uri: str,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    samples: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Publish an iteration's policy; return the next reference's URI, or empty to stop. See `checkpoint.step`."""
    from spin_components.runtime.kfp_artifacts import show_checkpoint
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt,
        "spin_components.checkpoint.step:publish",
        run_uri=run_uri,
        iteration=iteration,
        reference_uri=reference_uri,
        policy_uri=policy_uri,
    )
    show_checkpoint(model, metrics, samples, report, run_uri, iteration, policy_uri)
    return uri
