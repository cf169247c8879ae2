"""Settings of `[cluster]`, which are fixed when the pipeline is compiled because KFP allows no parameters there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from spin_components import __version__
from spin_components.settings.attempt import StepResources
from spin_components.settings.section import Section
from spin_components.settings.settings import Settings

DEFAULT_IMAGES = "spin-pipelines"
TRAINING_RUNTIME = "spin-train-epoch"
"""Name of the ClusterTrainingRuntime in manifests/training."""

_NAME = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"


class ClusterSettings(Section):
    """Images, secrets, volumes, retries and limits of the pods; secrets are given by name, never by value."""

    image_prefix: str = Field(DEFAULT_IMAGES, min_length=1, description="registry and folder of the three images")
    image_tag: str = Field(__version__, min_length=1)
    image_pull_secret: str = Field("", pattern=_NAME, description="Secret for a private registry")
    storage_secret: str = Field(
        "spin-storage", pattern=_NAME, description="Secret with the storage's keys; empty: the pod's own identity"
    )
    storage_env: dict[str, str] = Field(
        default_factory=lambda: {name: name for name in ("S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
        description="variable of a pod to the key of storage_secret",
    )
    env: dict[str, str] = Field(default_factory=dict, description="other variables of every pod; no secrets")
    hub_secret: str = Field("", pattern=_NAME, description="Secret with HF_TOKEN, for gated or private hf:// sources")
    tracking_secret: str = Field(
        "", pattern=_NAME, description="Secret with WANDB_API_KEY, MLFLOW_TRACKING_TOKEN, …_USERNAME or …_PASSWORD"
    )
    judge_secret: str = Field(
        "", pattern=_NAME, description="Secret with SPIN_JUDGE_API_KEY, for evaluation.judge_url; empty: no key"
    )
    model_cache_claim: str = Field("", pattern=_NAME, description="volume claim of the model cache")
    light: StepResources = Field(
        StepResources(cpu="2", memory="8Gi"), description="resources of prepare, checkpoint and a TrainJob's launcher"
    )
    shm_gib: PositiveInt = Field(8, description="shared memory of the steps with a model, for NCCL and vLLM")
    retries: int = Field(
        3,
        ge=0,
        le=10,
        description="how often a step is begun again that was killed or whose failure may pass, also on one machine; "
        "each time it goes on where it stopped",
    )
    fuse: list[Literal["ref-logprob", "validate"]] = Field(
        default_factory=list,
        description="steps of an iteration that are done in the pod of the step before them, with its image and "
        "resources: ref-logprob after generate, validate after train-epoch with one node; fewer pods have to start",
    )
    timeout_s: int = Field(0, ge=0, description="time limit of each step in seconds; 0: none")
    run_as_user: int = Field(1000, ge=0, description="user and group of the pods; 0: the image's own, for KFP 2.15")
    queue: str = Field("", pattern=_NAME, description="Kueue LocalQueue that admits the pods; empty: none")
    iteration_labels: bool = Field(
        False,
        description="label pods with their iteration and epoch too; the tasks of a step then share no specification, "
        "which takes 1.5 KiB a task of the compiled pipeline",
    )
    training_runtime: str = Field(
        TRAINING_RUNTIME,
        min_length=1,
        description="ClusterTrainingRuntime of a TrainJob; manifests/training",
    )

    def image(self, name: str) -> str:
        """Full name of the `cpu`, `generate` or `train` image."""
        return f"{self.image_prefix.rstrip('/')}/{name}:{self.image_tag}"


class Configuration(Settings):
    """A whole configuration file: the run's settings, and `[cluster]`, which is not recorded in the run."""

    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="after")
    def _check_fused(self) -> Configuration:
        if "validate" in self.cluster.fuse and self.hardware.nodes > 1:
            raise ValueError(
                f"cluster.fuse has validate, and hardware.nodes = {self.hardware.nodes}: the pod of train-epoch then "
                "starts others and has no GPU; leave validate out, or train on one node"
            )
        return self
