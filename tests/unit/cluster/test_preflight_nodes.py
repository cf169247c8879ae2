"""Capacity of nodes for a run's pods, with numbers computed by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from spin_pipeline.cluster.preflight.demands import Demand, demands_of
from spin_pipeline.cluster.preflight.nodes import obstacle, read_node
from spin_pipeline.config import load_settings
from support.scene import node

GPU = "nvidia.com/gpu"
GPU_TAINT = {"key": GPU, "value": "present", "effect": "NoSchedule"}


def demand(**fields: Any) -> Demand:
    return Demand("train-epoch", {"cpu": Decimal(1)}, **fields)


def affinity(*expressions: dict[str, Any]) -> dict[str, Any]:
    terms = [{"matchExpressions": [expression]} for expression in expressions]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}


def test_each_kind_of_pod_requests_the_resources_of_its_step() -> None:
    overrides = [
        "generation.shards=3",
        "generation.tensor_parallel=2",
        "training.global_batch_size=64",
        "hardware.ranks=8",
        "hardware.nodes=2",
        f"placement.accelerator={GPU}",
        'placement.train={cpu = "500m", memory = "100G"}',
    ]
    configuration = load_settings("tiny", overrides)
    light, generate, score, validate, train = demands_of(configuration, configuration.cluster)
    assert light.resources == {"cpu": Decimal(2), "memory": Decimal(8 * 2**30)}
    assert generate.resources == {"cpu": Decimal(4), "memory": Decimal(16 * 2**30), GPU: Decimal(2)}
    assert (generate.at_once, score.at_once, train.at_once) == (3, 3, 2)
    assert (score.resources[GPU], validate.resources[GPU]) == (Decimal(2), Decimal(8))  # 8 GPUs by 3 shards
    assert train.resources == {"cpu": Decimal("0.5"), "memory": Decimal(100 * 10**9), GPU: Decimal(8)}
    assert train.is_joint and not generate.is_joint


def test_without_an_accelerator_no_pod_requests_one() -> None:
    configuration = load_settings("tiny")
    assert all(set(one.resources) == {"cpu", "memory"} for one in demands_of(configuration, configuration.cluster))


def test_a_node_holds_as_many_pods_as_its_scarcest_resource_allows() -> None:
    worker = read_node(node("a", cpu="31850m", memory="120Gi", gpu="8"))
    assert worker.holds({"cpu": Decimal(4), "memory": Decimal(16 * 2**30)}) == 7  # cores: 31.85 / 4; memory: 7.5
    assert worker.holds({"cpu": Decimal(1), GPU: Decimal(3)}) == 2
    assert worker.holds({"cpu": Decimal(1), "amd.com/gpu": Decimal(1)}) == 0


@pytest.mark.parametrize(
    ("toleration", "is_borne"),
    [
        ({"key": GPU, "operator": "Exists"}, True),
        ({"key": GPU, "operator": "Exists", "effect": "NoSchedule"}, True),
        ({"key": GPU, "operator": "Equal", "value": "present"}, True),
        ({"key": GPU, "value": "present", "effect": "NoSchedule"}, True),
        ({"operator": "Exists"}, True),
        ({"key": GPU, "value": "other"}, False),
        ({"key": GPU}, False),
        ({"key": GPU, "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_a_taint_excludes_pods_that_do_not_tolerate_it(toleration: dict[str, str], is_borne: bool) -> None:
    worker = read_node(node("a", taints=[GPU_TAINT], cpu="8"))
    assert obstacle(worker, demand()) == f"taint {GPU}=present:NoSchedule"
    assert obstacle(worker, demand(tolerations=[toleration])) == ("" if is_borne else f"taint {GPU}=present:NoSchedule")


def test_a_prefer_no_schedule_taint_excludes_no_pod() -> None:
    taint = {"key": "slow", "effect": "PreferNoSchedule"}
    assert obstacle(read_node(node("a", taints=[taint], cpu="8")), demand()) == ""


def test_a_cordoned_or_unready_node_takes_no_pod() -> None:
    cordoned = node("a", cpu="8")
    cordoned["spec"]["unschedulable"] = True
    assert obstacle(read_node(cordoned), demand()) == "not ready, or cordoned"
    assert obstacle(read_node(node("a", is_ready=False, cpu="8")), demand()) == "not ready, or cordoned"


def test_a_selector_needs_the_label_with_that_value() -> None:
    worker = read_node(node("a", labels={"pool": "gpu"}, cpu="8"))
    assert obstacle(worker, demand(node_selector={"pool": "gpu"})) == ""
    assert obstacle(worker, demand(node_selector={"pool": "cpu"})) == "no label pool=cpu"


@pytest.mark.parametrize(
    ("expression", "is_within"),
    [
        ({"key": "zone", "operator": "In", "values": ["a", "b"]}, True),
        ({"key": "zone", "operator": "In", "values": ["b"]}, False),
        ({"key": "zone", "operator": "NotIn", "values": ["b"]}, True),
        ({"key": "none", "operator": "NotIn", "values": ["b"]}, True),
        ({"key": "zone", "operator": "Exists"}, True),
        ({"key": "none", "operator": "Exists"}, False),
        ({"key": "none", "operator": "DoesNotExist"}, True),
        ({"key": "gpu-memory", "operator": "Gt", "values": ["40000"]}, True),
        ({"key": "gpu-memory", "operator": "Lt", "values": ["40000"]}, False),
        ({"key": "zone", "operator": "Gt", "values": ["1"]}, False),
    ],
)
def test_affinity_is_evaluated_like_the_scheduler_does(expression: dict[str, Any], is_within: bool) -> None:
    worker = read_node(node("a", labels={"zone": "a", "gpu-memory": "81920"}, cpu="8"))
    assert (obstacle(worker, demand(affinity=affinity(expression))) == "") is is_within


def test_one_matching_affinity_term_is_enough_and_preferences_are_ignored() -> None:
    worker = read_node(node("a", labels={"zone": "a"}, cpu="8"))
    elsewhere = {"key": "zone", "operator": "In", "values": ["b"]}
    here = {"key": "zone", "operator": "In", "values": ["a"]}
    assert obstacle(worker, demand(affinity=affinity(elsewhere, here))) == ""
    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {}}]}
    assert obstacle(worker, demand(affinity=preferred)) == ""


def test_an_affinity_may_name_the_node_itself() -> None:
    field = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}
    by_name = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [field]}}
    assert obstacle(read_node(node("a", cpu="8")), demand(affinity=by_name)) == ""
    assert obstacle(read_node(node("b", cpu="8")), demand(affinity=by_name)) == "outside placement.affinity"
