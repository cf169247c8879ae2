"""KFP component: evaluate a published model; its failure does not end the run."""

from kfp import dsl

from spin_components.images import TRAIN
from spin_components.runtime.kfp_component import component


@component(TRAIN)
def evaluate(attempt: str, run_uri: str, iteration: int, after: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Evaluate what an iteration published; -1 is the base model. See `evaluate.step`.

    `after` is an output of the tasks that must be over before; KFP orders tasks by their inputs.
    """
    from spin_components.runtime.kfp_artifacts import show_evaluation
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt, "spin_components.evaluate.step:evaluate", is_optional=True, run_uri=run_uri, iteration=iteration
    )
    show_evaluation(metrics, run_uri, iteration, uri)
    return uri
