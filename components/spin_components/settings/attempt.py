"""Settings of an attempt: selection, hardware, placement and tracking, which may change when a run is resumed."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from spin_components.settings.section import CountOrFraction, Section, check_fraction, check_some


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
    collective_timeout: float = Field(
        1800.0,
        ge=1,
        le=7 * 86400,
        description="Number of seconds that training ranks wait for each other in a collective: for the slowest one to "
        "load the model, or to compute its part of a step. None waits there for storage.",
    )
    save_timeout: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Number of seconds that training ranks wait for each other's parts of a save to be stored; 0: half "
        "an hour, and the time to store a whole save at 50 MB/s.",
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
    shard_scoring: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether the processes that score and validate divide the weights of the model, so that each GPU "
        "holds a part and gathers a block at a time; auto: where one GPU does not hold the model.",
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

    The number of GPUs follows from the step: `hardware.ranks` for training and validation; the pods of the shards
    divide as many among them to generate, at least `generation.tensor_parallel` each, and to score, at least one, or
    as many as an engine has, unless `hardware.shard_scoring` is `off`; where it is `on`, each has all of them to score.
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
    ephemeral_storage: str = Field(
        "",
        pattern=r"^([1-9]\d*([KMGTP]i?)?)?$",
        description="Local disk that each pod of a TrainJob requests, as in 500Gi; empty for none. KFP has no such "
        "request for the pods of other steps.",
    )
    devices: dict[str, int] = Field(
        default_factory=dict,
        description='Further devices that each pod of a TrainJob requests, as in {"rdma/hca" = 1} for RDMA.',
    )
    ipc_lock: bool = Field(
        False,
        description="Whether the pods of a TrainJob get the capability IPC_LOCK, with which RDMA pins memory; "
        "namespaces with the Pod Security Standard baseline or restricted refuse it.",
    )

    @field_validator("devices")
    @classmethod
    def _check_devices(cls, values: dict[str, int]) -> dict[str, int]:
        for name, number in values.items():
            if not re.fullmatch(r"[a-z0-9.-]+/[A-Za-z0-9._-]+", name) or number < 1:
                raise ValueError(f"expected a resource's name and a number of 1 or more; found {name!r} = {number}")
        return values

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


JUDGE_KEY = "SPIN_JUDGE_API_KEY"
"""Environment variable with the API key of the judge's endpoint; there is no setting for it."""


TaskName = Annotated[str, Field(pattern=r"^[^\s/\\*?\[\]]+$")]


class EvaluationSettings(Section):
    """Evaluation of the base model and of each iteration's model; may change between attempts.

    The pipeline has evaluate steps only where `tasks` or `judge_url` is set; no other step depends on them, unless
    `selection.measure` is one of their results.
    """

    tasks: list[TaskName] = Field(
        default_factory=list,
        description="Names of lm-evaluation-harness tasks, groups or tags to evaluate on; empty for none.",
    )
    task_files: str = Field(
        "",
        description="Folder of your own task files (*.yaml) with their data, a path or s3://…; it is copied into the "
        "run.",
    )
    trust_task_code: bool = Field(
        False,
        description="Whether to run code of task files: Python functions (!function), metrics and filters that "
        "lm-evaluation-harness does not ship, tasks that are marked unsafe, templates without a sandbox.",
    )
    num_fewshot: int = Field(
        -1, ge=-1, description="Number of solved examples in each prompt; -1: as each task defines it."
    )
    limit: CountOrFraction = Field(1.0, description="Fraction or number of each task's documents to evaluate.")
    batch_size: int = Field(8, ge=1, description="Number of sequences per forward pass.")
    chat_template: bool = Field(
        False, description="Whether to render the tasks' prompts with the model's chat template."
    )
    judge_url: str = Field(
        "",
        description="OpenAI-compatible endpoint of an LLM judge, as in https://host/v1; empty for no judge. The API "
        f"key comes from the variable {JUDGE_KEY}.",
    )
    judge_model: str = Field("", description="Name of the judge's model at the endpoint.")
    judge_num_samples: int = Field(
        0, ge=0, description="Number of sampled held-out answers that the judge scores; 0 for all of them."
    )
    judge_template: str = Field(
        "",
        description="Prompt of the judge, with the placeholders {prompt} and {answer}, optionally {human}; empty for "
        "the built-in prompt.",
    )
    judge_concurrency: int = Field(4, ge=1, le=32, description="Number of concurrent requests to the judge.")
    judge_timeout_s: int = Field(
        120,
        ge=1,
        description="Timeout of one request to the judge, in seconds; after three times as long an answer is left "
        "without a score.",
    )

    _fractions = field_validator("limit")(check_fraction)
    _not_none = field_validator("limit")(check_some)

    @field_validator("judge_url")
    @classmethod
    def _check_judge_url(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("write http://host:port/v1 or https://host/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"credentials in an address would be stored with the run; set {JUDGE_KEY} instead")
        return value.rstrip("/")

    @field_validator("judge_template")
    @classmethod
    def _check_judge_template(cls, value: str) -> str:
        if value and (missing := [name for name in ("{prompt}", "{answer}") if name not in value]):
            raise ValueError(f"the placeholder {' and '.join(missing)} is missing; expected {{prompt}} and {{answer}}")
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> EvaluationSettings:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"evaluation.tasks names a task twice: {', '.join(self.tasks)}")
        if self.task_files and not self.tasks:
            raise ValueError("evaluation.task_files is set, but evaluation.tasks is empty; name the tasks to run")
        if bool(self.judge_url) != bool(self.judge_model):
            raise ValueError(
                "evaluation.judge_url and evaluation.judge_model must both be set, or neither; "
                f"found {self.judge_url!r} and {self.judge_model!r}"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether models are evaluated."""
        return bool(self.tasks or self.judge_url)

    def task_inputs(self) -> dict[str, Any]:
        """Settings that results of tasks depend on, by name."""
        names = ("tasks", "num_fewshot", "limit", "chat_template")
        return {f"evaluation.{name}": value for name, value in self.model_dump(mode="json", include=set(names)).items()}

    def judge_inputs(self) -> dict[str, Any]:
        """Settings that the judge's scores depend on, by name."""
        names = ("judge_url", "judge_model", "judge_num_samples", "judge_template")
        return {f"evaluation.{name}": value for name, value in self.model_dump(mode="json", include=set(names)).items()}
