"""Train the policy for one epoch of an iteration, from where the last save left it."""

from __future__ import annotations

from typing import Any

from spin_components.runtime.step import Step
from spin_components.training.epoch import train_one_epoch
from spin_components.training.nodes.following import Pods


def train(
    run_uri: str,
    iteration: int,
    epoch: int,
    policy_uri: str,
    scores_uris: list[str],
    hardware: dict[str, Any] | None = None,
    *,
    pods: Pods | None = None,
) -> str:
    """Train one epoch of an iteration.

    Args:
        run_uri: the run.
        iteration: t.
        epoch: within the iteration.
        policy_uri: the weights to begin with: the reference at epoch 0, then the epoch before's.
        scores_uris: what `ref-logprob` returned for each shard.
        hardware: `[hardware]`; None for what `prepare` recorded for the attempt.
        pods: where `hardware.nodes` pods train; None trains on this machine.

    Returns: the trained policy's URI, or empty when the attempt's time is up.
    """
    after = [policy_uri, *scores_uris]
    with Step.begin("train-epoch", run_uri, hardware, after=after, iteration=iteration, epoch=epoch) as step:
        return step.returns(train_one_epoch(step, iteration, epoch, policy_uri, pods))


def train_on_nodes(*, pod: dict[str, Any], template: dict[str, Any], poll_s: float = 5.0, **arguments: Any) -> str:
    """Train one epoch of an iteration in several pods.

    Args:
        pod, template, poll_s: see `Pods`.
        arguments: those of `train`.
    """
    return train(**arguments, pods=Pods(pod, template, poll_s))
