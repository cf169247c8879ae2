"""KFP component: check everything, render and split the data, record the run."""

from typing import NamedTuple

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
    objective: dict,
    generation: dict,
    training: dict,
    lora: dict,
    validation: dict,
    evaluation: dict,
    selection: dict,
    hardware: dict,
    placement: dict,
    tracking: dict,
    compiled: dict,
    dataset: dsl.Output[dsl.Dataset],
) -> NamedTuple(  # type: ignore[valid-type]  # KFP reads it where it stands
    "Prepared",
    policy_uri=str,
    accelerator=str,
    generate_accelerators=str,
    train_accelerators=str,
    score_accelerators=str,
    generate_cpu=str,
    generate_memory=str,
    train_cpu=str,
    train_memory=str,
    score_cpu=str,
    score_memory=str,
    node_selector=dict,
    tolerations=list,
    affinity=dict,
):
    """Check configuration, model and data; write shards; return the base model's URI, and the pods' resource requests.

    See `prepare.step`.
    """
    from spin_components.prepare.pods import pod_requests
    from spin_components.runtime.kfp_artifacts import show_data
    from spin_components.runtime.supervisor import run_step

    settings = {
        "run": {**run, "uri": run_uri},
        "model": model,
        "data": data,
        "spin": {**spin, "max_iterations": max_iterations},
        "objective": objective,
        "generation": generation,
        "training": training,
        "lora": lora,
        "validation": validation,
        "evaluation": evaluation,
        "selection": selection,
        "hardware": hardware,
        "placement": placement,
        "tracking": tracking,
    }
    uri = run_step(
        attempt, "spin_components.prepare.step:prepare", run_uri=run_uri, settings=settings, compiled=compiled
    )
    show_data(dataset, run_uri, uri)
    return uri, *pod_requests(settings)
