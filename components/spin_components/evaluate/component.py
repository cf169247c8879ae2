"""KFP component: evaluate a published model; what fails here ends nothing else."""

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

    `after` is what came out of the steps that must be over; KFP orders tasks by such values.
    """
    from spin_components.process import perform_optional
    from spin_components.shown import show_evaluation

    uri = perform_optional(
        "evaluate.step:evaluate", attempt=attempt, run_uri=run_uri, iteration=iteration, hardware=hardware
    )
    show_evaluation(metrics, run_uri, iteration, uri)
    return uri
