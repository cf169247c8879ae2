"""The pipeline that KFP runs for a schedule: one small step that submits a run and follows it.

KFP passes the same parameters to each run of a schedule, and (2.15 to 2.17) no time in them. So this step determines
what differs each time: the address of the run, the model to start from, and whether the data is new.
"""

from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl.graph_component import GraphComponent

from spin_components.images import CPU
from spin_components.settings.attempt import StepResources
from spin_pipeline.deploy.cluster_settings import ClusterSettings
from spin_pipeline.deploy.placement import Placement


@dsl.component(base_image=CPU, install_kfp_package=False)
def retrain(order: dict, endpoint: str, namespace: str) -> str:
    """Submit a run and follow it; returns its outcome in a word. See `spin_pipeline.cluster.scheduled_run.launch`."""
    from spin_pipeline.cluster.scheduled_run import launch

    return launch(order, endpoint, namespace)


_WAITING = StepResources(cpu="500m", memory="2Gi")


def launcher(cluster: ClusterSettings) -> GraphComponent:
    """Build the pipeline of that step.

    The step is not retried, since a retry would submit another run after a failed one, and has no time limit.

    Args:
        cluster: image, secrets and user of the step's pod.
    """
    unlimited = cluster.model_copy(update={"light": _WAITING, "timeout_s": 0})

    @dsl.pipeline(name="spin-schedule", description="Submits a SPIN run and follows it.")
    def spin_schedule(order: dict, endpoint: str = "", namespace: str = "") -> None:
        """Submit a run and follow it.

        Args:
            order: The submission, from the options of `spin-pipeline schedule`.
            endpoint: Address of the KFP API for pods; empty for the default service.
            namespace: Namespace of the user in a multi-user KFP; empty for the pod's.
        """
        task: Any = retrain(order=order, endpoint=endpoint, namespace=namespace)
        task.set_caching_options(False)
        Placement(unlimited).light(task, retry=False)
        kubernetes.add_pod_label(task, "access-ml-pipeline", "true")  # Kubeflow mounts a token for KFP into such pods

    return spin_schedule
