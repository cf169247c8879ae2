"""Check that the steps' estimated memory fits their pods and GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spin_components.errors import SpinError
from spin_components.memory.check import estimate_steps, format_peaks
from spin_components.memory.fit import shortages
from spin_components.memory.machines import pod_machine
from spin_components.memory.model_config import find_shape
from spin_components.memory.work import Workload, longest_allowed
from spin_components.memory.zero_stage import resolve_zero_stage
from spin_components.runtime.kubernetes_api import KubernetesApi
from spin_components.settings.settings import Settings
from spin_pipeline.cluster.preflight.demands import Demand
from spin_pipeline.cluster.preflight.findings import Finding, failed, passed, warned
from spin_pipeline.cluster.preflight.nodes import obstacle, read_node

GPU_MEMORY_LABEL = "nvidia.com/gpu.memory"
"""MiB of one GPU of a node; NVIDIA's feature discovery sets it."""

_SUBJECT = "memory"


def check_memory(kubernetes: KubernetesApi, settings: Settings, demands: Sequence[Demand]) -> Iterator[Finding]:
    """Compare the estimate of every step with a model, for the longest pair allowed, with its pod and its GPU.

    Args:
        kubernetes: the cluster, whose nodes may be labelled with their GPUs' memory.
        settings: of the run.
        demands: kinds of pods, to tell which nodes they may be on.
    """
    check = settings.hardware.memory_check
    if check == "off":
        return
    try:
        shape, origin = find_shape(settings.model.base, what="model.base")
    except SpinError as error:
        yield warned(_SUBJECT, f"not estimated: {error}", "prepare estimates it before any other step")
        return
    machine = pod_machine(settings, _smallest_gpu(kubernetes, demands))
    work = resolve_zero_stage(shape, Workload(settings, machine, longest_allowed(settings)))
    estimates = estimate_steps(shape, work)
    found = shortages(estimates, work)
    for shortage in found:
        if shortage.is_certain and check == "refuse":
            yield failed(_SUBJECT, shortage.message, f"{shortage.remedy}; or hardware.memory_check = 'warn'")
        else:
            yield warned(_SUBJECT, shortage.message, shortage.remedy)
    if machine.device == "cuda" and not machine.device_bytes:
        remedy = f"set hardware.gpu_memory_gib, or label nodes with {GPU_MEMORY_LABEL}"
        yield warned(_SUBJECT, f"{format_peaks(estimates)}; how much a GPU has is not known", remedy)
    elif not found:
        yield passed(_SUBJECT, f"{format_peaks(estimates)} (the model by {origin})")


def _smallest_gpu(kubernetes: KubernetesApi, demands: Sequence[Demand]) -> int:
    """Bytes of the smallest GPU that a pod may get, from labels of nodes; 0 where there are none."""
    response = kubernetes.get("/api/v1/nodes", limit="5000")
    if not response.is_ok:
        return 0
    placed = [demand for demand in demands if not demand.steps.startswith("prepare")]
    nodes = [read_node(item) for item in response.body.get("items") or []]
    sizes = [
        int(node.labels[GPU_MEMORY_LABEL])
        for node in nodes
        if node.labels.get(GPU_MEMORY_LABEL, "").isdigit()
        and any(not obstacle(node, demand) and node.holds(demand.resources) for demand in placed)
    ]
    return min(sizes, default=0) * 2**20
