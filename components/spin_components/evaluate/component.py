"""KFP components: evaluate a model, beside training, or before a verdict that its results decide."""

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


@component(TRAIN)
def evaluate_to_decide(
    attempt: str, run_uri: str, iteration: int, policy_uri: str, after: str, metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Evaluate a policy before the verdict on it and pass its URI on. See `evaluate.step`.

    Iteration -1 is the base model, -2 the warm-up. `after` is an output of the tasks that must be over before.
    """
    from spin_components.runtime.kfp_artifacts import show_evaluation
    from spin_components.runtime.supervisor import run_step

    uri = run_step(
        attempt,
        "spin_components.evaluate.step:evaluate_to_decide",
        run_uri=run_uri,
        iteration=iteration,
        policy_uri=policy_uri,
        after=after,
    )
    show_evaluation(metrics, run_uri, iteration, uri)
    return uri
