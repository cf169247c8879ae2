"""KFP component: check everything, render and split the data, record the run."""

from kfp import dsl

from spin_components.images import CPU


@dsl.component(base_image=CPU, install_kfp_package=False)
def prepare(
    attempt: str,
    run_uri: str,
    max_iterations: int,
    run: dict,
    model: dict,
    data: dict,
    spin: dict,
    generation: dict,
    training: dict,
    validation: dict,
    selection: dict,
    hardware: dict,
    compiled: dict,
) -> str:
    """Check configuration, model and data; write shards; return the base model's URI. See `prepare.step`."""
    from spin_components.execution import perform

    settings = {
        "run": {**run, "uri": run_uri},
        "model": model,
        "data": data,
        "spin": {**spin, "max_iterations": max_iterations},
        "generation": generation,
        "training": training,
        "validation": validation,
        "selection": selection,
        "hardware": hardware,
    }
    return perform("prepare.step:prepare", attempt=attempt, run_uri=run_uri, settings=settings, compiled=compiled)
