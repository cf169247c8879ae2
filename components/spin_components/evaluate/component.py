"""KFP component: evaluate a published model; its failure does not end the run."""

from kfp import dsl

from spin_components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def evaluate(
    attempt: str,
    run_uri: str,
    iteration: int,
    after: str,
    hardware: dict,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Evaluate what an iteration published; -1 is the base model. See `evaluate.step`.

    `after` is an output of the tasks that must be over before; KFP orders tasks by their inputs.
    """
    from spin_components.runtime.kfp_artifacts import show_evaluation
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt,
        "spin_components.evaluate.step:evaluate",
        is_optional=True,
        run_uri=run_uri,
        iteration=iteration,
        hardware=hardware,
    )
    show_evaluation(metrics, run_uri, iteration, uri)
    return uri
