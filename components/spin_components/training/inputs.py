"""What an epoch is made from: settings, the pairs with their scores, and the policy it begins with."""

from __future__ import annotations

from typing import Any

from spin_components.errors import ConfigError
from spin_components.model.compute import resolve_compute
from spin_components.model.scoring import resolve_packing
from spin_components.model.stored import model_digest
from spin_components.record.pairs import generation_digests, shard_manifests
from spin_components.runtime.step import Step
from spin_components.settings.settings import Settings
from spin_components.store.digests import digest_json, digest_of

_NOT_INPUTS = (
    *("training.save_interval", "training.backend", "training.zero_stage", "training.offload_optimizer"),
    "training.lr_schedule_span",  # see `Settings.schedule_inputs`
)


def epoch_inputs(
    step: Step, iteration: int, epoch: int, policy_uri: str, numerics: dict[str, Any] | None
) -> dict[str, Any]:
    """Inputs of an epoch's manifest.

    Args:
        step: the running step.
        iteration: t.
        epoch: within the iteration.
        policy_uri: the weights the epoch begins with.
        numerics: of this machine, see `numerics_here`; None where other machines train.

    Raises:
        ConfigError: the epoch would be computed otherwise than the reference was scored.
        IntegrityError: a shard of the iteration is missing.
    """
    settings, shards = step.settings, shard_manifests(step.run, iteration)
    scored_in = {name: shards[0][1].inputs[name] for name in ("precision", "packing")}
    for _, scored in shards:
        check_numerics(numerics or scored_in, scored.inputs)
    pairs = [[digest_of(scored.outputs), *generation_digests(scored).values()] for _, scored in shards]
    training = {f"training.{name}": value for name, value in settings.training.model_dump(mode="json").items()}
    return {
        **{name: value for name, value in training.items() if name not in _NOT_INPUTS},
        "training.lr": settings.training.peak_lr(iteration),
        **settings.schedule_inputs(),
        **settings.objective.training_inputs(),
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


def numerics_here(settings: Settings) -> dict[str, Any]:
    """`precision` and `packing` that this machine computes log-probabilities with."""
    compute = resolve_compute(settings.hardware, settings.training.precision)
    return {"precision": compute.precision, "packing": resolve_packing(settings.training, compute)}


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
