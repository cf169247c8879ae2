"""Configures the pods of tasks on a cluster: images, resources, secrets, volumes, retries; no effect on one machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kfp import kubernetes

from spin_components.runtime.supervisor import RETRIES
from spin_components.settings.attempt import JUDGE_KEY
from spin_components.training.nodes.train_job import STEP_LABEL
from spin_pipeline.deploy.cluster_settings import ClusterSettings

CACHE = "/var/cache/spin"
"""Folder of the model cache in a pod."""

TRACKING_KEYS = ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Keys that a tracking Secret may have; each becomes the environment variable of the same name."""

EVALUATE_GPUS = "evaluate_accelerators"
"""Output of `prepare` that a pod within an iteration takes only where the evaluation decides."""

POD_FIELDS: dict[str, type] = {
    "accelerator": str,
    "generate_accelerators": str,
    "train_accelerators": str,
    "score_accelerators": str,
    "validate_accelerators": str,
    EVALUATE_GPUS: str,
    "generate_cpu": str,
    "generate_memory": str,
    "train_cpu": str,
    "train_memory": str,
    "score_cpu": str,
    "score_memory": str,
    "node_selector": dict,
    "tolerations": list,
    "affinity": dict,
}
"""Outputs of `prepare` that configure pods. They are known only at run time, since `[placement]` is a parameter."""

_FIRST_RETRY_S, _LAST_RETRY_S = 15, 30 * 86400
"""Pauses before retries. KFP's longest is also Argo's limit on the time since the first attempt began."""

_TASK = re.compile(r"(.+?)(-base|-warm-up|-control)?(?:-(\d+))?(?:-(\d+))?")
"""A task's key: step, iteration, epoch."""


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

    def generate(self, task: Any, pod_fields: Mapping[str, Any]) -> Any:
        """Configure the pod of generate; `pod_fields` are prepare's outputs of `POD_FIELDS`, here and below."""
        return self._with_model(task, pod_fields, "generate", image="generate")

    def score(self, task: Any, pod_fields: Mapping[str, Any]) -> Any:
        """Configure the pod of ref-logprob, of which there is one for each shard."""
        return self._with_model(task, pod_fields, "score", image="train")

    def validate(self, task: Any, pod_fields: Mapping[str, Any]) -> Any:
        """Configure the pod of validate: CPU and memory as for scoring."""
        return self._with_model(task, pod_fields, "score", image="train", gpus="validate")

    def evaluate(self, task: Any, pod_fields: Mapping[str, Any]) -> Any:
        """Configure the pod of evaluate: as for scoring, with the judge's API key, which no other pod has."""
        self._with_model(task, pod_fields, "score", image="train", gpus="evaluate")
        if self.cluster and self.cluster.judge_secret:
            kubernetes.use_secret_as_env(task, self.cluster.judge_secret, {JUDGE_KEY: JUDGE_KEY})
        return task

    def train(self, task: Any, pod_fields: Mapping[str, Any]) -> Any:
        """Configure the pod of train-epoch, which trains itself or starts a TrainJob with the same placement."""
        return self._with_model(task, pod_fields, "train", image="train")

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

    def _with_model(
        self,
        task: Any,
        pod_fields: Mapping[str, Any],
        kind: Literal["generate", "train", "score"],
        *,
        image: str,
        gpus: str = "",
    ) -> Any:
        if not self.cluster:
            return task
        self._common(task, self.cluster, image=image)
        cpu, memory = pod_fields[f"{kind}_cpu"], pod_fields[f"{kind}_memory"]
        accelerators = pod_fields[f"{gpus or kind}_accelerators"]
        task.set_cpu_limit(cpu).set_memory_limit(memory)  # Kubernetes takes a limit as the request too
        task.set_accelerator_type(pod_fields["accelerator"])
        task.set_accelerator_limit(accelerators)
        # a ParallelFor passes on only registered channels; KFP registers those of the calls below, not of those above
        task.register_pipeline_channels([cpu, memory, pod_fields["accelerator"], accelerators])
        kubernetes.add_node_selector_json(task, pod_fields["node_selector"])
        kubernetes.add_toleration_json(task, pod_fields["tolerations"])
        kubernetes.add_node_affinity_json(task, pod_fields["affinity"])
        size = f"{self.cluster.shm_gib}Gi"
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=size)
        return task

    @staticmethod
    def _fixed_resources(task: Any, cluster: ClusterSettings) -> None:
        task.set_cpu_limit(cluster.light.cpu).set_memory_limit(cluster.light.memory)

    def _labels(self, key: str, cluster: ClusterSettings) -> Iterator[tuple[str, str]]:
        """Labels for `kubectl get pods -l`, and the queue of Kueue. A shard is known at run time only."""
        match = _TASK.fullmatch(key)
        assert match
        yield "app.kubernetes.io/component", match[1]
        if self.run_name:
            yield "app.kubernetes.io/instance", self.run_name
        for name, number in (("iteration", match[3]), ("epoch", match[4])):
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
        for name, value in {"SPIN_CACHE_DIR": CACHE, **retries, **cluster.env}.items():
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
