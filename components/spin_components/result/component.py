"""KFP component: the result of a run as artifacts of one task, with names of their own."""

from kfp import dsl

from spin_components.images import CPU
from spin_components.runtime.kfp_component import component


@component(CPU)
def result(
    attempt: str,
    created: str,
    run_uri: str,
    best_model: dsl.Output[dsl.Model],
    final_metrics: dsl.Output[dsl.Metrics],
    final_report: dsl.Output[dsl.HTML],
) -> str:
    """Show the final metrics, the best model and the final report; return how the run ended, in a sentence."""
    from spin_components.runtime.result_artifacts import show_result

    return show_result(best_model, final_metrics, final_report, run_uri, attempt, created)
