"""KFP component: check everything, render and split the data, record the run."""

from typing import NamedTuple

from kfp import dsl

from spin_components.images import CPU
from spin_components.runtime.kfp_component import component


@component(CPU)
def prepare(
    attempt: str,
    created: str,
    compiled: dict,
    base_model: str,
    beta: str,
    data_train: str,
    data_validation: str,
    epochs: str,
    global_batch_size: int,
    gpu_type: str,
    gpus_generate: int,
    gpus_train: int,
    learning_rate: str,
    max_iterations: int,
    max_new_tokens: int,
    max_time: str,
    run_uri: str,
    seed: int,
    settings_control: str,
    settings_data: str,
    settings_evaluation: str,
    settings_generation: str,
    settings_hardware: str,
    settings_lora: str,
    settings_model: str,
    settings_objective: str,
    settings_placement: str,
    settings_run: str,
    settings_selection: str,
    settings_spin: str,
    settings_tracking: str,
    settings_training: str,
    settings_validation: str,
    settings_warm_up: str,
    dataset: dsl.Output[dsl.Dataset],
) -> NamedTuple(  # type: ignore[valid-type]  # KFP reads it where it stands
    "Prepared",
    run_uri=str,
    policy_uri=str,
    pods=dict,
    shards=list,
):
    """Check configuration, model and data; write shards; return addresses of run and base model, pod requests, shards.

    See `prepare.step`.
    """
    form = locals()
    from spin_components.prepare.form import read_form
    from spin_components.prepare.pods import pod_requests
    from spin_components.runtime.kfp_artifacts import read_num_shards, show_data
    from spin_components.runtime.supervisor import run_step

    address, settings = read_form(form, compiled, attempt, created)
    uri = run_step(
        attempt, "spin_components.prepare.step:prepare", run_uri=address, settings=settings, compiled=compiled
    )
    show_data(dataset, address, uri)
    num_shards = read_num_shards(address)
    settings["generation"]["shards"] = num_shards  # where it was to be chosen
    return address, uri, pod_requests(settings), list(range(num_shards))
