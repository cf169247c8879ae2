"""Settings of an attempt: selection, hardware, placement and tracking, which may change when a run is resumed."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from spin_components.section import Section


class SelectionSettings(Section):
    """Choice of the next reference, retention of weights, and early stopping."""

    epoch: Literal["last", "best"] = Field(
        "last",
        description="Epoch whose policy becomes the next reference: the last one, or the one of lowest val_loss.",
    )
    save_top_k: int = Field(
        3,
        ge=-1,
        description="Number of iterations, by lowest val_loss, whose weights are kept; -1 for all. The last and the "
        "best are always kept.",
    )
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="Confidence level of the interval of a change of val_loss; a change is significant when the "
        "interval does not contain 0.",
    )
    on_regression: Literal["stop", "roll_back", "continue"] = Field(
        "stop",
        description="What follows an iteration that is significantly worse than the best one: stop the run, continue "
        "from the best policy (roll_back), or continue from the worse one.",
    )
    patience: int = Field(
        2,
        ge=0,
        description="Number of consecutive iterations without a significant gain after which the run stops; 0 disables "
        "this.",
    )
    min_delta: float = Field(
        0.0, ge=0, description="Smallest change of val_loss, in nats per token, that counts as a gain or a regression."
    )
    max_repetition: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Largest fraction of repeated 4-grams in sampled answers; a policy above it has regressed. "
        "0 for no limit.",
    )
    max_length_ratio: float = Field(
        0.0,
        ge=0,
        description="Largest ratio r of the mean length of sampled answers to that of the human answers; a policy "
        "above r or below 1/r has regressed. 0 for no limit.",
    )

    @field_validator("max_length_ratio")
    @classmethod
    def _check_max_length_ratio(cls, value: float) -> float:
        if 0 < value <= 1:
            raise ValueError("1 is the human's own length; give a limit above it, like 2.0, or 0 for none")
        return value

    @property
    def limits(self) -> list[str]:
        """Names of those limits on sampled answers that are set."""
        return [f"selection.{name}" for name in ("max_repetition", "max_length_ratio") if getattr(self, name)]


class HardwareSettings(Section):
    """Devices, processes and memory of a step; may change between attempts."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device that models run on; auto: a GPU where there is one."
    )
    ranks: int = Field(1, ge=1, description="Number of training processes per node; on GPUs, one per GPU.")
    nodes: int = Field(
        1,
        ge=1,
        description="Number of pods that train an epoch; above 1 they run as a Kubeflow TrainJob. Fixed when the "
        "pipeline is compiled.",
    )
    threads: int = Field(
        0, ge=0, description="Number of CPU threads per process; 0 divides the cores evenly among the ranks."
    )
    gpu_memory_gib: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Memory of one GPU in GiB, for the memory estimate; 0: read from the machine or a node's label.",
    )
    memory_check: Literal["refuse", "warn", "off"] = Field(
        "refuse",
        description="What to do when the estimated memory of a step clearly exceeds the available memory: refuse the "
        "run, warn, or nothing (off).",
    )
    sampler_tolerance: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Largest mean difference, in nats per token, between the log-probabilities of the sampler and of "
        "the reference; 0: a default by engine and precision.",
    )

    @property
    def world_size(self) -> int:
        """Number of training processes on all nodes."""
        return self.ranks * self.nodes


class StepResources(Section):
    """CPU and memory of one pod, both as request and as limit, in Kubernetes' quantities."""

    cpu: str = Field("4", pattern=r"^([1-9]\d*m?|\d+\.\d+)$", description="Number of CPU cores, as in 4, 0.5 or 500m.")
    memory: str = Field("16Gi", pattern=r"^[1-9]\d*([KMGTP]i?)?$", description="Memory, as in 16Gi or 64G.")

    @property
    def memory_bytes(self) -> int:
        """`memory` in bytes."""
        digits = self.memory.rstrip("KMGTPi")
        unit = self.memory.removeprefix(digits)
        base, power = 1024 if unit.endswith("i") else 1000, " KMGTP".index(unit[0]) if unit else 0
        return int(digits) * int(base**power)


class PlacementSettings(Section):
    """Resources and scheduling of the pods that load a model; used on a cluster only, may change between attempts.

    The number of GPUs follows from the step: `generation.tensor_parallel` for generate, `hardware.ranks` for training,
    one for scoring and one for validation.
    """

    accelerator: str = Field(
        "",
        pattern=r"^([a-z0-9.-]+/[A-Za-z0-9._-]+)?$",
        description="Resource name of the accelerator that pods request, as in nvidia.com/gpu; empty for CPU only.",
    )
    generate: StepResources = Field(StepResources(), description="CPU and memory of a generate pod.")
    train: StepResources = Field(StepResources(), description="CPU and memory of a training pod.")
    score: StepResources = Field(
        StepResources(), description="CPU and memory of a ref-logprob, validate or evaluate pod."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that a node must have, as in a pod's nodeSelector."
    )
    tolerations: list[dict[str, Any]] = Field(
        default_factory=list, description="Tolerations of node taints, as in a pod's tolerations."
    )
    affinity: dict[str, Any] = Field(
        default_factory=dict, description="Node affinity, as in a pod's affinity.nodeAffinity."
    )

    @field_validator("tolerations")
    @classmethod
    def _check_tolerations(cls, values: list[dict[str, Any]]) -> list[dict[str, Any]]:
        known = {"key", "operator", "value", "effect", "tolerationSeconds"}
        for value in values:
            if unknown := sorted(set(value) - known):
                raise ValueError(f"a toleration has {', '.join(sorted(known))}; found {', '.join(unknown)}")
        return values

    @field_validator("affinity")
    @classmethod
    def _check_affinity(cls, value: dict[str, Any]) -> dict[str, Any]:
        known = {"requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"}
        if unknown := sorted(set(value) - known):
            raise ValueError(f"a node affinity has {' and '.join(sorted(known))}; found {', '.join(unknown)}")
        return value


class TrackingSettings(Section):
    """Experiment trackers that metrics are also sent to; may change between attempts."""

    tensorboard: bool = Field(
        False, description="Whether to write TensorBoard event files to the run's tensorboard/ folder."
    )
    mlflow_uri: str = Field(
        "",
        description="MLflow tracking server, http(s)://host, or file:///folder; empty disables MLflow. Credentials "
        "come from the variables MLFLOW_TRACKING_*.",
    )
    mlflow_experiment: str = Field("spin", min_length=1, description="Name of the MLflow experiment.")
    wandb_project: str = Field(
        "",
        description="Weights & Biases project; empty disables it. The API key comes from the variable WANDB_API_KEY.",
    )
    wandb_entity: str = Field(
        "", description="Weights & Biases team or user; empty for the default entity of the API key."
    )
    wandb_mode: Literal["online", "offline"] = Field(
        "online",
        description="Whether Weights & Biases logs to its server, or to files in the run's tracking/ folder for "
        "`wandb sync`.",
    )

    @field_validator("mlflow_uri")
    @classmethod
    def _check_mlflow_uri(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https", "file") or not (parts.netloc or parts.path.strip("/")):
            raise ValueError("write http://host:port, https://host, or file:///folder")
        if "@" in parts.netloc or parts.query:
            raise ValueError(
                "credentials in an address would be stored with the run; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        return value
