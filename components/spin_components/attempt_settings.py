"""The sections of the settings that say how an attempt is made, not what a run is: free to change between attempts."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from spin_components.section import Section


class SelectionSettings(Section):
    """Which policy an iteration hands on, how many stay, and when to stop."""

    epoch: Literal["last", "best"] = Field("last", description="which epoch's policy becomes the next reference")
    save_top_k: int = Field(
        3, ge=-1, description="iterations whose weights stay, by val_loss; -1 for all; last and best always do"
    )
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="of the interval of a change of val_loss; clear where 0 is outside",
    )
    on_regression: Literal["stop", "roll_back", "continue"] = Field(
        "stop",
        description="after an iteration that is clearly worse than the best: end with the best, play on from the best, "
        "or play on from the worse one",
    )
    patience: int = Field(
        2, ge=0, description="iterations in a row without a clear gain before stopping; 0 never stops for that"
    )
    min_delta: float = Field(0.0, ge=0, description="a smaller change of val_loss is no gain and no regression, nats")
    max_repetition: float = Field(
        0.0, ge=0, le=1, description="a policy whose answers repeat more of their 4-grams has regressed; 0 is off"
    )
    max_length_ratio: float = Field(
        0.0, ge=0, description="so has one whose answers are that many times the human's length, or that part; 0 is off"
    )

    @field_validator("max_length_ratio")
    @classmethod
    def _room_for_the_same(cls, value: float) -> float:
        if 0 < value <= 1:
            raise ValueError("1 is the human's own length; give a limit above it, like 2.0, or 0 for none")
        return value

    @property
    def limits(self) -> list[str]:
        """Names of the limits on sampled answers that are set."""
        return [f"selection.{name}" for name in ("max_repetition", "max_length_ratio") if getattr(self, name)]


class HardwareSettings(Section):
    """What one step may use; free to change between attempts."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    ranks: int = Field(1, ge=1, description="training processes a node: GPUs, where there are any")
    nodes: int = Field(1, ge=1, description="pods of train-epoch, as a Kubeflow TrainJob above 1; fixed when compiled")
    threads: int = Field(0, ge=0, description="CPU threads a process; 0 shares the cores among ranks")
    gpu_memory_gib: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="of one GPU; 0: as the machine, or a node's label, says"
    )
    memory_check: Literal["refuse", "warn", "off"] = Field(
        "refuse", description="what is done about a step whose estimated memory clearly exceeds what there is"
    )
    sampler_tolerance: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="nats a token by which the sampler's log-probabilities may differ from the reference's, in the "
        "mean; 0: by engine and precision",
    )

    @property
    def world_size(self) -> int:
        """Training processes in all."""
        return self.ranks * self.nodes


class StepResources(Section):
    """CPU and memory of one pod, requested and at most, as Kubernetes writes quantities."""

    cpu: str = Field("4", pattern=r"^([1-9]\d*m?|\d+\.\d+)$", description="cores: 4, 0.5 or 500m")
    memory: str = Field("16Gi", pattern=r"^[1-9]\d*([KMGTP]i?)?$", description="bytes: 16Gi, 64G")

    @property
    def memory_bytes(self) -> int:
        """`memory` as a number."""
        digits = self.memory.rstrip("KMGTPi")
        unit = self.memory.removeprefix(digits)
        base, power = 1024 if unit.endswith("i") else 1000, " KMGTP".index(unit[0]) if unit else 0
        return int(digits) * int(base**power)


class PlacementSettings(Section):
    """What the steps with a model ask of a cluster's nodes; free to change between attempts; nothing on one machine.

    GPUs of a pod follow from the work: `generation.tensor_parallel` of them generate, `hardware.ranks` train, one
    scores and one validates.
    """

    accelerator: str = Field("", pattern=r"^([a-z0-9.-]+/[A-Za-z0-9._-]+)?$", description="nvidia.com/gpu; empty: none")
    generate: StepResources = StepResources()
    train: StepResources = StepResources()
    score: StepResources = Field(StepResources(), description="of ref-logprob, validate and evaluate")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels a node must have")
    tolerations: list[dict[str, Any]] = Field(default_factory=list, description="taints to bear, as in a pod")
    affinity: dict[str, Any] = Field(default_factory=dict, description="nodeAffinity, as in a pod's affinity")

    @field_validator("tolerations")
    @classmethod
    def _tolerations(cls, values: list[dict[str, Any]]) -> list[dict[str, Any]]:
        known = {"key", "operator", "value", "effect", "tolerationSeconds"}
        for value in values:
            if unknown := sorted(set(value) - known):
                raise ValueError(f"a toleration has {', '.join(sorted(known))}; found {', '.join(unknown)}")
        return values

    @field_validator("affinity")
    @classmethod
    def _node_affinity(cls, value: dict[str, Any]) -> dict[str, Any]:
        known = {"requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"}
        if unknown := sorted(set(value) - known):
            raise ValueError(f"a node affinity has {' and '.join(sorted(known))}; found {', '.join(unknown)}")
        return value


class TrackingSettings(Section):
    """Where metrics go beside the run's own storage; free to change between attempts. Credentials are no settings."""

    tensorboard: bool = Field(False, description="event files below the run's tensorboard/")
    mlflow_uri: str = Field(
        "", description="MLflow server, http(s)://host, or file:///folder; empty: off. MLFLOW_TRACKING_* name the user"
    )
    mlflow_experiment: str = Field("spin", min_length=1)
    wandb_project: str = Field("", description="Weights & Biases; empty: off. WANDB_API_KEY names the user")
    wandb_entity: str = Field("", description="team or user; empty: the key's own")
    wandb_mode: Literal["online", "offline"] = Field(
        "online", description="offline: files below the run's tracking/, for `wandb sync`"
    )

    @field_validator("mlflow_uri")
    @classmethod
    def _no_keys(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https", "file") or not (parts.netloc or parts.path.strip("/")):
            raise ValueError("write http://host:port, https://host, or file:///folder")
        if "@" in parts.netloc or parts.query:
            raise ValueError(
                "an address that holds keys would be kept with the run; name them in MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        return value
