"""Fine-tune on the human answers of an iteration with as many updates as it made, without self-play."""

from __future__ import annotations

import logging
from typing import Any

from spin_components.record.pointers import is_over
from spin_components.runtime.process import STOPPED
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.store.manifests import read_manifest
from spin_components.store.open import open_run
from spin_components.training.course import Course
from spin_components.training.epoch import delete_control, delete_epochs, lowest_epoch, train_part
from spin_components.training.inputs import epoch_inputs, numerics_here
from spin_components.training.nodes.following import Pods

logger = logging.getLogger(__name__)


def control(
    run_uri: str,
    iteration: int,
    start_uri: str,
    hardware: dict[str, Any] | None = None,
    *,
    pods: Pods | None = None,
) -> str:
    """Train the control of an iteration, in the global batches that the iteration was trained in.

    Args:
        run_uri: the run.
        iteration: t, which is published.
        start_uri: the reference of iteration 0, where control 0 begins. Each later one begins from the control of the
            iteration before, and trains that first where its own task has not yet done so: no iteration waits for it.
        hardware: `[hardware]`; None for what `prepare` recorded for the attempt.
        pods: where `hardware.nodes` pods train; None trains on this machine.

    Returns: URI of the policy; empty where the iteration was not published, or the attempt's time is up.
    """
    number = layout.control(iteration)
    if iteration and start_uri != STOPPED:
        start_uri = _trained(run_uri, iteration - 1) or control(run_uri, iteration - 1, start_uri, hardware, pods=pods)
    with Step.begin("control", run_uri, hardware, after=[start_uri], iteration=iteration) as step:
        if step.is_stopped:
            return step.returns("")
        if not step.run.exists(layout.checkpoint(iteration)):
            step.stop(f"iteration {iteration} is not published")
            return step.returns("")

        def inputs() -> dict[str, Any]:
            return epoch_inputs(step, number, 0, start_uri, None if pods else numerics_here(step.settings))

        key, num_epochs = layout.control_manifest(iteration), Course(step.settings, number).num_epochs
        if step.is_due(key, inputs):
            step.is_last |= is_over(step.run)  # also where it fails
            policy_uri, epochs = start_uri, list[dict[str, Any]]()
            for epoch in range(num_epochs):
                facts = train_part(step, number, epoch, policy_uri, pods)
                if facts is None:
                    return step.returns("")
                epochs.append(facts)
                policy_uri = step.run.resolve(str(facts["policy_uri"]))
            if step.is_due(key, inputs, is_timed=False):
                step.publish(_facts(step, iteration, epochs), outputs={})
        if step.is_stopped or step.published is None:
            return step.returns("")
        facts = step.published.facts
        delete_epochs(step, number, num_epochs, keep=facts["epoch"], trainer=not step.settings.spin.reset_optimizer)
        if iteration:
            delete_control(step, iteration - 1)
        return step.run.resolve(str(facts["policy_uri"]))


def train_on_nodes(*, pod: dict[str, Any], template: dict[str, Any], poll_s: float = 5.0, **arguments: Any) -> str:
    """Run a control in several pods; see `Pods`, and for the other arguments `control`."""
    return control(**arguments, pods=Pods(pod, template, poll_s))


def _trained(run_uri: str, iteration: int) -> str:
    """URI of the policy of an iteration's control; empty where that is not trained."""
    with open_run(run_uri) as run:
        if not run.exists(layout.control_manifest(iteration)):
            return ""
        return run.resolve(str(read_manifest(run, layout.control_manifest(iteration)).facts["policy_uri"]))


def _facts(step: Step, iteration: int, epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """Facts of the control; its epoch is chosen by the rule for an iteration's."""
    best = lowest_epoch(epochs) if step.selection.epoch == "best" else len(epochs) - 1
    return {
        "iteration": iteration,
        "epoch": best,
        "policy_uri": epochs[best]["policy_uri"],
        "val_loss": epochs[best]["val_loss"],
        "num_steps": sum(int(facts["num_steps"]) for facts in epochs),
        "consumed_samples": int(epochs[-1]["state"]["consumed_samples"]),
        "peak_lr": Course(step.settings, layout.control(iteration)).peak_lr,
    }
