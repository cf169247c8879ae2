"""Configures the pods of tasks on a cluster: images, resources, secrets, volumes, retries; no effect on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kfp import kubernetes

from spin_components.runtime.supervisor import RETRIES
from spin_components.settings.attempt import JUDGE_KEY
from spin_components.training.nodes.train_job import STEP_LABEL
from spin_pipeline.deploy.cluster_settings import ClusterSettings
from spin_pipeline.deploy.pod_parameters import POD_KINDS, parts_of

CACHE = "/var/cache/spin"
"""Folder of the model cache in a pod; the images set `SPIN_CACHE_DIR` to it."""

TRACKING_KEYS = ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Keys that a tracking Secret may have; each becomes the environment variable of the same name."""

_FIRST_RETRY_S, _LAST_RETRY_S = 15, 30 * 86400
"""Pauses before retries. KFP's longest is also Argo's limit on the time since the first attempt began."""


@dataclass(frozen=True)
class Placement:
    """Configures the pods of tasks from a cluster's settings.

    Attributes:
        cluster: None on one machine, where tasks are left unchanged.
        run_name: `run.name` of the configuration, a label of the pods.
    """

    cluster: ClusterSettings | None
    run_name: str = ""

    def light(self, task: Any, *, retry: bool = True) -> Any:
        """Configure the pod of a step without a model: prepare, checkpoint.

        Args:
            task: the step's task.
            retry: whether Kubernetes retries it; `prepare` fails on wrong input, which a retry does not change.
        """
        if self.cluster:
            self._common(task, self.cluster, image="cpu", retry=retry)
            self._fixed_resources(task, self.cluster)
        return task

    def with_model(self, task: Any, pods: Any) -> Any:
        """Configure the pod of a step with a model; see `pod_parameters.POD_KINDS`.

        Args:
            task: the step's task. One that starts a TrainJob passes its placement on to that.
            pods: output of `prepare` with the requests of all pods, known at run time since `[placement]` is a
                parameter. `pod_parameters.pass_requests` has the task read them.
        """
        if not self.cluster:
            return task
        step, _, _ = parts_of(task.component_spec.name)
        self._common(task, self.cluster, image=POD_KINDS[step].image)
        task.register_pipeline_channels([pods])
        size = f"{self.cluster.shm_gib}Gi"
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=size)
        if step == "evaluate" and self.cluster.judge_secret:  # no other pod has the key
            kubernetes.use_secret_as_env(task, self.cluster.judge_secret, {JUDGE_KEY: JUDGE_KEY})
        return task

    def job_template(self) -> dict[str, Any] | None:
        """The cluster's part of a TrainJob; see `spin_components.training.nodes.train_job.JobTemplate`."""
        if not self.cluster:
            return None
        return {
            "image": self.cluster.image("train"),
            "runtime": self.cluster.training_runtime,
            "shm_gib": self.cluster.shm_gib,
            "run_as_user": self.cluster.run_as_user,
            "image_pull_secret": self.cluster.image_pull_secret,
            "timeout_s": self.cluster.timeout_s,
        }

    @staticmethod
    def _fixed_resources(task: Any, cluster: ClusterSettings) -> None:
        task.set_cpu_limit(cluster.light.cpu).set_memory_limit(cluster.light.memory)

    def _labels(self, key: str, cluster: ClusterSettings) -> Iterator[tuple[str, str]]:
        """Labels for `kubectl get pods -l`, and the queue of Kueue. A shard is known at run time only."""
        step, iteration, epoch = parts_of(key)
        yield "app.kubernetes.io/component", step
        if self.run_name:
            yield "app.kubernetes.io/instance", self.run_name
        for name, number in (("iteration", iteration), ("epoch", epoch)):
            if number and cluster.iteration_labels:
                yield f"spin-pipelines.io/{name}", number
        if cluster.queue:
            yield "kueue.x-k8s.io/queue-name", cluster.queue

    def _common(self, task: Any, cluster: ClusterSettings, *, image: str, retry: bool = True) -> None:
        """Set the image, environment, secrets, volumes, user, retries and time limit."""
        task.set_container_image(cluster.image(image))
        for label in (STEP_LABEL, *self._labels(task.component_spec.name, cluster)):
            kubernetes.add_pod_label(task, *label)
        retries = {} if cluster.retries == ClusterSettings().retries else {RETRIES: str(cluster.retries)}
        for name, value in {**retries, **cluster.env}.items():
            task.set_env_variable(name, value)
        if cluster.storage_secret:
            keys = {key: variable for variable, key in cluster.storage_env.items()}
            kubernetes.use_secret_as_env(task, cluster.storage_secret, keys)
        if cluster.hub_secret:
            kubernetes.use_secret_as_env(task, cluster.hub_secret, {"HF_TOKEN": "HF_TOKEN"})
        if cluster.tracking_secret:
            kubernetes.use_secret_as_env(
                task, cluster.tracking_secret, {name: name for name in TRACKING_KEYS}, optional=True
            )
        if cluster.image_pull_secret:
            kubernetes.set_image_pull_secrets(task, [cluster.image_pull_secret])
        if cluster.model_cache_claim:
            kubernetes.mount_pvc(task, cluster.model_cache_claim, CACHE)
        if cluster.run_as_user:
            kubernetes.set_security_context(
                task, run_as_user=cluster.run_as_user, run_as_group=cluster.run_as_user, run_as_non_root=True
            )
        if retry and cluster.retries:
            task.set_retry(
                cluster.retries,
                backoff_duration=f"{_FIRST_RETRY_S}s",
                backoff_factor=2.0,
                backoff_max_duration=f"{_LAST_RETRY_S}s",
            )
        if cluster.timeout_s:
            kubernetes.set_timeout(task, cluster.timeout_s)
