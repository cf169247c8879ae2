"""Fine-tune the base model on the human answers until its loss on the held-out ones stops falling."""

from __future__ import annotations

import logging
from typing import Any

from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.store.manifests import read_manifest
from spin_components.training.epoch import delete_epochs, lowest_epoch, train_part
from spin_components.training.inputs import epoch_inputs, numerics_here
from spin_components.training.nodes.following import Pods

logger = logging.getLogger(__name__)

Facts = dict[str, Any]


def warm_up(run_uri: str, base_uri: str, hardware: dict[str, Any] | None = None, *, pods: Pods | None = None) -> str:
    """Train up to `warm_up.max_epochs` epochs, and publish the policy of the one with the lowest val_loss.

    Each epoch has a manifest of its own, and saves inside it like an iteration's.

    Args:
        run_uri: the run.
        base_uri: the base model, validated; empty when the attempt has stopped.
        hardware: `[hardware]`; None for what `prepare` recorded for the attempt.
        pods: where `hardware.nodes` pods train; None trains on this machine.

    Returns: URI of the policy, or of the base model where no epoch has a lower val_loss; empty when the attempt's time
        is up.
    """
    with Step.begin("warm-up", run_uri, hardware, after=[base_uri]) as step:

        def inputs() -> Facts:
            numerics = None if pods else numerics_here(step.settings)
            first = epoch_inputs(step, layout.WARM_UP, 0, base_uri, numerics)
            return {**first, "warm_up.patience": step.settings.warm_up.patience}

        if step.is_due(layout.WARM_UP_MANIFEST, inputs):
            epochs = _train(step, base_uri, pods)
            if epochs and step.is_due(layout.WARM_UP_MANIFEST, inputs, is_timed=False):
                facts = _facts(step, base_uri, epochs)
                step.publish(facts, outputs={})
        if step.is_stopped or step.published is None:
            return step.returns("")
        facts = step.published.facts
        delete_epochs(step, layout.WARM_UP, len(facts["epochs"]), keep=facts["epoch"])
        return step.run.resolve(str(facts["policy_uri"]))


def train_on_nodes(*, pod: dict[str, Any], template: dict[str, Any], poll_s: float = 5.0, **arguments: Any) -> str:
    """Run the warm-up in several pods; see `Pods`, and for the other arguments `warm_up`."""
    return warm_up(**arguments, pods=Pods(pod, template, poll_s))


def _train(step: Step, base_uri: str, pods: Pods | None) -> list[Facts]:
    """Train epoch after epoch; returns the facts of each, or none where the attempt's time is up."""
    rules, policy_uri = step.settings.warm_up, base_uri
    losses = [_base_loss(step)]
    epochs: list[Facts] = []
    while len(epochs) < rules.max_epochs and not is_exhausted(losses, rules.patience):
        facts = train_part(step, layout.WARM_UP, len(epochs), policy_uri, pods)
        if facts is None:
            return []
        epochs.append(facts)
        losses.append(float(facts["val_loss"]))
        policy_uri = step.run.resolve(str(facts["policy_uri"]))
        delete_epochs(step, layout.WARM_UP, len(epochs) - 1, keep=lowest_epoch(epochs))
        logger.info("epoch %d: val_loss %.4f", len(epochs) - 1, losses[-1])
    return epochs


def is_exhausted(losses: list[float], patience: int) -> bool:
    """Whether the loss has stopped falling.

    Args:
        losses: val_loss of the base model, then of every epoch.
        patience: number of last epochs without a lower loss than before them; 0 for any number.
    """
    return 0 < patience <= len(losses) - 1 - losses.index(min(losses))


def _base_loss(step: Step) -> float:
    return float(read_manifest(step.run, layout.BASE_VALIDATION).facts["val_loss"])


def _facts(step: Step, base_uri: str, epochs: list[Facts]) -> Facts:
    """Facts of the warm-up: the epoch that is kept (None: the base model), and the loss after each."""
    best, base_loss = lowest_epoch(epochs), _base_loss(step)
    is_lower = float(epochs[best]["val_loss"]) < base_loss
    return {
        "epoch": best if is_lower else None,
        "policy_uri": epochs[best]["policy_uri"] if is_lower else base_uri,
        "val_loss": epochs[best]["val_loss"] if is_lower else base_loss,
        "base_val_loss": base_loss,
        "epochs": [{name: facts[name] for name in ("val_loss", "num_steps", "train_s")} for facts in epochs],
        "num_steps": sum(int(facts["num_steps"]) for facts in epochs),
        "consumed_samples": int(epochs[-1]["state"]["consumed_samples"]),
        "peak_lr": step.settings.warm_up.lr,
        "ended_by": "max_epochs" if len(epochs) == step.settings.warm_up.max_epochs else "patience",
    }
