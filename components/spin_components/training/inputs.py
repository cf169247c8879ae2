"""What an epoch is made from: settings, the pairs with their scores, and the policy it begins with."""

from __future__ import annotations

from typing import Any

from spin_components.errors import ConfigError
from spin_components.model.batch_layout import resolve_packing
from spin_components.model.compute import resolve_compute
from spin_components.model.stored import model_digest
from spin_components.record.pairs import generation_digests, shard_manifests
from spin_components.runtime.step import Step
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import digest_json, digest_of
from spin_components.store.manifests import read_manifest
from spin_components.training.course import Course

_NOT_INPUTS = (
    *("training.save_interval", "training.backend", "training.zero_stage", "training.offload_optimizer"),
    "training.lr_schedule_span",  # see `Settings.schedule_inputs`
    "training.micro_batch_tokens",  # see `TrainingSettings.budget_inputs`
)


def epoch_inputs(
    step: Step, iteration: int, epoch: int, policy_uri: str, numerics: dict[str, Any] | None
) -> dict[str, Any]:
    """Inputs of an epoch's manifest.

    Args:
        step: the running step.
        iteration: t, `layout.WARM_UP`, or that of a control.
        epoch: within the iteration.
        policy_uri: the weights the epoch begins with.
        numerics: of this machine, see `numerics_here`; None where other machines train.

    Raises:
        ConfigError: the epoch would be computed otherwise than the reference was scored.
        IntegrityError: a shard of the iteration is missing.
    """
    settings, course = step.settings, Course(step.settings, iteration)
    if course.is_warm_up:
        return _warm_up_inputs(step, epoch, policy_uri, numerics)
    iteration = course.iteration
    shards = shard_manifests(step.run, iteration)
    scored_in = {name: shards[0][1].inputs[name] for name in ("precision", "packing")}
    for _, scored in shards:
        check_numerics(numerics or scored_in, scored.inputs)
    pairs = [[digest_of(scored.outputs), *generation_digests(scored).values()] for _, scored in shards]
    objective = settings.objective.training_inputs() if course.is_self_play else {"objective.loss": "sft"}
    return {
        **_training_inputs(settings),
        "training.lr": course.peak_lr,
        **settings.schedule_inputs(),
        **objective,
        **settings.lora.training_inputs(),
        "spin.ref_policy_kl_penalty": settings.spin.beta(iteration),
        "spin.max_epochs": settings.spin.epochs(iteration),
        "spin.max_steps": settings.spin.max_steps,
        "spin.reset_optimizer": settings.spin.reset_optimizer,
        "run.seed": settings.run.seed,
        **scored_in,
        "pairs": digest_json(pairs),
        "policy": model_digest(step.run, policy_uri),
        "epoch": epoch,
    }


def _training_inputs(settings: Settings) -> dict[str, Any]:
    """Settings of `[training]` that an epoch depends on, by name."""
    training = {f"training.{name}": value for name, value in settings.training.model_dump(mode="json").items()}
    inputs = {name: value for name, value in training.items() if name not in _NOT_INPUTS}
    return inputs | settings.training.budget_inputs()


def _warm_up_inputs(step: Step, epoch: int, policy_uri: str, numerics: dict[str, Any] | None) -> dict[str, Any]:
    """Inputs of an epoch of the warm-up; arguments as of `epoch_inputs`."""
    settings, run = step.settings, step.run
    data = read_manifest(run, layout.DATA_MANIFEST)
    validated = read_manifest(run, layout.BASE_VALIDATION).inputs
    return {
        **_training_inputs(settings),
        "training.lr": settings.warm_up.lr,
        **settings.lora.training_inputs(),
        "warm_up.max_epochs": settings.warm_up.max_epochs,
        "run.seed": settings.run.seed,
        **(numerics or {name: validated[name] for name in ("precision", "packing")}),
        "data": digest_json(sorted(file.sha256 for key, file in data.outputs.items())),
        "policy": model_digest(run, policy_uri),
        "epoch": epoch,
    }


def numerics_here(settings: Settings) -> dict[str, Any]:
    """`precision` and `packing` that this machine computes log-probabilities with."""
    compute = resolve_compute(settings.hardware, settings.training.precision)
    return {"precision": compute.precision, "packing": resolve_packing(settings.training)}


def check_numerics(here: dict[str, Any], reference: dict[str, Any]) -> None:
    """Refuse to compute the policy otherwise than the reference.

    Args:
        here: see `numerics_here`.
        reference: inputs that the reference was scored with.

    Raises:
        ConfigError: naming the setting.
    """
    for name, value in here.items():
        if reference[name] != value:
            raise ConfigError(
                f"ref-logprob computed in {reference[name]}, train-epoch would in {value}; policy and reference must "
                f"be computed alike. Set training.{name}, or use like machines"
            )
