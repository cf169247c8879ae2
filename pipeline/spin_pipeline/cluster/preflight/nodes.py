"""Check that the nodes can hold the pods of a run, by what is allocatable, not by what is free now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from spin_components.runtime.kubernetes_api import KubernetesApi
from spin_pipeline.cluster.preflight.accounts import unseen
from spin_pipeline.cluster.preflight.demands import Demand, quantity_text
from spin_pipeline.cluster.preflight.findings import Finding, failed, passed, warned

_REPELLING = ("NoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True)
class Node:
    """A node, with what the scheduler decides by.

    Attributes:
        allocatable: resource name to cores, bytes or devices.
        taints: that keep pods away.
        is_ready: it is, and takes new pods.
    """

    name: str
    labels: Mapping[str, str]
    allocatable: Mapping[str, Decimal]
    taints: Sequence[Mapping[str, str]]
    is_ready: bool

    def holds(self, resources: Mapping[str, Decimal]) -> int:
        """The number of pods with these requests that fit the empty node."""
        return min(int(self.allocatable.get(name, Decimal(0)) // asked) for name, asked in resources.items() if asked)


def check_nodes(kubernetes: KubernetesApi, demands: Sequence[Demand], *, is_growing: bool = False) -> Iterator[Finding]:
    """Check for each kind of pod that a node can hold one, and that those at the same time fit together.

    Args:
        kubernetes: the cluster.
        demands: kinds of pods.
        is_growing: nodes are added when pods wait for them, so nothing is wrong with there being none yet.
    """
    response = kubernetes.get("/api/v1/nodes", limit="5000")
    if not response.is_ok:
        yield unseen("nodes", "the nodes", response)
        return
    nodes = [read_node(item) for item in response.body.get("items") or []]
    for demand in demands:
        finding = _check_demand(nodes, demand)
        if is_growing and finding.verdict == "fail":
            finding = warned(finding.subject, finding.message, "an autoscaler must add what is missing")
        yield finding


def read_node(item: Mapping[str, Any]) -> Node:
    """Read a node of a list from its JSON."""
    spec, status, metadata = item.get("spec", {}), item.get("status", {}), item.get("metadata", {})
    ready = any(state["type"] == "Ready" and state["status"] == "True" for state in status.get("conditions", []))
    return Node(
        name=metadata.get("name", ""),
        labels=metadata.get("labels") or {},
        allocatable={name: parse_quantity(value) for name, value in (status.get("allocatable") or {}).items()},
        taints=[taint for taint in spec.get("taints") or [] if taint.get("effect") in _REPELLING],
        is_ready=ready and not spec.get("unschedulable", False),
    )


def obstacle(node: Node, demand: Demand) -> str:
    """Why a node cannot take any of the pods, whatever their requests; empty where it can."""
    if not node.is_ready:
        return "not ready, or cordoned"
    for name, value in demand.node_selector.items():
        if node.labels.get(name) != value:
            return f"no label {name}={value}"
    if not matches_affinity(node, demand.affinity):
        return "outside placement.affinity"
    for taint in node.taints:
        if not any(_tolerates(toleration, taint) for toleration in demand.tolerations):
            value = f"={taint['value']}" if taint.get("value") else ""
            return f"taint {taint.get('key')}{value}:{taint.get('effect')}"
    return ""


def matches_affinity(node: Node, affinity: Mapping[str, Any]) -> bool:
    """Whether a node meets the requirements of a `nodeAffinity`; preferences are ignored."""
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    return any(
        all(_matches(rule, node.labels.get(rule["key"])) for rule in term.get("matchExpressions") or [])
        and all(_matches(rule, node.name) for rule in term.get("matchFields") or [])
        for term in required.get("nodeSelectorTerms") or []
        if term.get("matchExpressions") or term.get("matchFields")
    )


def _matches(rule: Mapping[str, Any], found: str | None) -> bool:
    values = rule.get("values") or []
    match rule.get("operator"):
        case "In":
            return found in values
        case "NotIn":
            return found not in values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt" as operator:
            if found is None or not found.lstrip("-").isdigit():
                return False
            return int(found) > int(values[0]) if operator == "Gt" else int(found) < int(values[0])
        case _:
            return False


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, str]) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return not toleration.get("key") or toleration["key"] == taint.get("key")
    return toleration.get("key") == taint.get("key") and toleration.get("value", "") == taint.get("value", "")


def _check_demand(nodes: Sequence[Node], demand: Demand) -> Finding:
    subject = "nodes"
    obstacles = {node.name: obstacle(node, demand) for node in nodes}
    open_nodes = [node for node in nodes if not obstacles[node.name]]
    room = sum(node.holds(demand.resources) for node in open_nodes)
    if room == 0:
        return failed(
            subject, f"no node can hold {demand}: {_why(nodes, open_nodes, obstacles, demand)}", _remedy(demand)
        )
    if room >= demand.at_once:
        return passed(subject, f"{demand}: {demand.at_once} at once, room for {room}")
    if demand.is_joint:
        message = f"{demand} needs {demand.at_once} pods at once, room for {room}"
        return failed(subject, message, "lower hardware.nodes, or add nodes")
    remedy = "fine if that may take longer; else add nodes or lower generation.shards"
    return warned(subject, f"{demand}: {demand.at_once} at once, room for {room}; the others wait", remedy)


def _why(nodes: Sequence[Node], open_nodes: Sequence[Node], obstacles: Mapping[str, str], demand: Demand) -> str:
    if not nodes:
        return "there is no node"
    reasons = Counter(reason for reason in obstacles.values() if reason)
    parts = [f"{number} of {len(nodes)}: {reason}" for reason, number in reasons.most_common(3)]
    for name, asked in demand.resources.items():
        most = max((node.allocatable.get(name, Decimal(0)) for node in open_nodes), default=None)
        if most is not None and most < asked:
            parts.append(f"the most {name} of a node is {quantity_text(name, most)}")
    return "; ".join(parts) or "no single node has enough of everything"


def _remedy(demand: Demand) -> str:
    if demand.steps.startswith("prepare"):
        return "lower cluster.light, or add a node"
    return (
        "change placement.generate, train or score, node_selector, tolerations or affinity, or add such a node; where "
        "an autoscaler does so by itself, say --autoscaled"
    )
