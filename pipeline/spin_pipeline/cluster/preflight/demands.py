"""The resources that each kind of pod of a run requests of one node."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from spin_components.settings.attempt import StepResources
from spin_components.settings.settings import Settings
from spin_pipeline.deploy.cluster_settings import ClusterSettings


@dataclass(frozen=True, slots=True)
class Demand:
    """Pods of one kind.

    Attributes:
        steps: they belong to, in words.
        resources: what one pod asks of its node, by resource name: cores, bytes, devices.
        at_once: pods of the kind that run at the same time at best.
        is_joint: whether they must all run for any to get on, as the nodes of one training do.
        node_selector: labels their node must have.
        tolerations: taints they bear, as in a pod.
        affinity: `nodeAffinity`, as in a pod.
    """

    steps: str
    resources: dict[str, Decimal]
    at_once: int = 1
    is_joint: bool = False
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    affinity: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        asked = ", ".join(f"{quantity_text(name, value)} {name}" for name, value in self.resources.items())
        return f"{self.steps} ({asked})"


def demands_of(settings: Settings, cluster: ClusterSettings) -> list[Demand]:
    """The kinds of pods that the pipeline of these settings starts."""
    place = settings.placement
    placed: dict[str, Any] = {
        "node_selector": place.node_selector,
        "tolerations": place.tolerations,
        "affinity": place.affinity,
    }
    generate = _resources(place.generate, place.accelerator, settings.num_gpus("generate"))
    train = _resources(place.train, place.accelerator, settings.num_gpus("train-epoch"))
    score = _resources(place.score, place.accelerator, settings.num_gpus("ref-logprob"))
    validate = _resources(place.score, place.accelerator, settings.num_gpus("validate"))
    nodes, shards = settings.hardware.nodes, max(1, settings.generation.shards)
    scoring = [Demand("ref-logprob and validate", score, at_once=shards, **placed)]
    if validate != score:
        scoring = [
            Demand("ref-logprob", score, at_once=shards, **placed),
            Demand("validate", validate, **placed),
        ]
    return [
        Demand("prepare and checkpoint", _resources(cluster.light, "", 0)),
        Demand("generate", generate, at_once=shards, **placed),
        *scoring,
        Demand("train-epoch", train, at_once=nodes, is_joint=nodes > 1, **placed),
    ]


def quantity_text(name: str, value: Decimal) -> str:
    """A quantity as text: memory in GiB."""
    if name == "memory":
        return f"{value / 2**30:.4g} GiB"
    return f"{value:f}".rstrip("0").rstrip(".") if "." in f"{value:f}" else f"{value:f}"


def _resources(step: StepResources, accelerator: str, num_accelerators: int) -> dict[str, Decimal]:
    asked = {"cpu": parse_quantity(step.cpu), "memory": parse_quantity(step.memory)}
    return {**asked, accelerator: Decimal(num_accelerators)} if accelerator and num_accelerators else asked
