"""What KFP runs for a schedule: one small step that submits a run and follows it, as a person or CI would.

KFP gives each run of a schedule the same parameters, and (2.15 to 2.17) puts no time in them. So what differs from time
to time, the address of the run, the model it goes on from and whether the data is new, is found out in this step.
"""

from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl.graph_component import GraphComponent

from spin_components.attempt_settings import StepResources
from spin_components.images import CPU
from spin_pipeline.cluster_settings import ClusterSettings
from spin_pipeline.placement import Placement


@dsl.component(base_image=CPU, install_kfp_package=False)
def retrain(order: dict, endpoint: str, namespace: str) -> str:
    """Submit a run and follow it; returns how it went in a word. See `spin_pipeline.cluster.recurring.launch`."""
    from spin_pipeline.cluster.recurring import launch

    return launch(order, endpoint, namespace)


_WAITING = StepResources(cpu="500m", memory="2Gi")


def launcher(cluster: ClusterSettings) -> GraphComponent:
    """The pipeline of that one step.

    The step is not retried: that would submit another run after one that failed. It has no time limit of its own.

    Args:
        cluster: image, secrets and user of its pod.
    """
    patient = cluster.model_copy(update={"light": _WAITING, "timeout_s": 0})

    @dsl.pipeline(name="spin-schedule", description="Submits a SPIN run and follows it.")
    def spin_schedule(order: dict, endpoint: str = "", namespace: str = "") -> None:
        """Submit a run and follow it.

        Args:
            order: What `spin-pipeline schedule` was told.
            endpoint: Of the KFP API, as pods reach it; empty for the usual service.
            namespace: Of the user, where KFP serves several; empty for the pod's.
        """
        task: Any = retrain(order=order, endpoint=endpoint, namespace=namespace)
        task.set_caching_options(False)
        Placement(patient).light(task, retry=False)
        kubernetes.add_pod_label(task, "access-ml-pipeline", "true")  # has Kubeflow project a token for KFP into it

    return spin_schedule
