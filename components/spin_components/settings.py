"""The settings of a run: one frozen section a step, limits in the types.

Names and meanings follow NeMo-Aligner's SPIN configuration where it has them. The `description` of a field is its entry
in the reference of settings. No torch is imported: the command line parses settings where torch is not installed.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from spin_components.attempt_settings import HardwareSettings, PlacementSettings, SelectionSettings, TrackingSettings
from spin_components.evaluation_settings import EvaluationSettings
from spin_components.generation_settings import GenerationSettings
from spin_components.lora_settings import LoraSettings
from spin_components.objective_settings import ObjectiveSettings
from spin_components.pool_settings import PoolSettings
from spin_components.section import (
    CountOrFraction,
    PositiveFloat,
    Section,
    check_fraction,
    check_per_iteration,
    check_some,
    per_iteration,
)

SCHEDULES = ("spin.ref_policy_kl_penalty", "spin.max_epochs", "generation.temperature", "training.lr")
"""Settings that take one number, or a list with one number per iteration."""


def parse_duration(text: str) -> float:
    """Parse a duration, `"90"` (seconds) or NeMo's `"DD:HH:MM:SS"`, to seconds; `""` means no limit, infinity.

    Raises:
        ValueError: the text has neither form.
    """
    if not text:
        return float("inf")
    parts = text.split(":")
    if len(parts) not in (1, 4) or not all(part.replace(".", "", 1).isdigit() for part in parts):
        raise ValueError(f"{text!r} is not a duration; write seconds, or days:hours:minutes:seconds like 00:03:50:00")
    if len(parts) == 1:
        return float(parts[0])
    days, hours, minutes, seconds = (float(part) for part in parts)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class RunSettings(Section):
    """Name, storage, seed and time limit of the run."""

    name: str = Field(
        "spin",
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        description="Name of the run, shown in the Kubeflow UI and in the report.",
    )
    uri: str = Field(
        "",
        description="Folder or s3://bucket/prefix that holds the run; starting a run with the same one resumes it.",
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Random seed of the validation split, of sampling and of the data order."
    )
    max_time: str = Field(
        "", description="Wall-clock limit of one attempt, in seconds or as DD:HH:MM:SS; empty for no limit."
    )

    @field_validator("max_time")
    @classmethod
    def _check_max_time(cls, value: str) -> str:
        parse_duration(value)
        return value

    @property
    def max_time_s(self) -> float:
        """`max_time` in seconds; infinity for no limit."""
        return parse_duration(self.max_time)


class ModelSettings(Section):
    """The model that iteration 0 starts from."""

    base: str = Field(
        min_length=1,
        description="Model folder in Hugging Face layout: a path, s3://…, hf://org/name@revision, or builtin:NAME.",
    )
    sha256: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="Expected SHA-256 of the base model's files; the run refuses to start with other files. "
        "Empty: not checked.",
    )
    forked_from: str = Field(
        "", description="Run and iteration that the base model was taken from; set by --fork-from."
    )
    trust_remote_code: bool = Field(False, description="Whether to run Python code that the model's folder contains.")


class DataSettings(Section):
    """Prompts and their human-written answers."""

    train: str = Field(
        min_length=1,
        description="Training data, a JSONL or Parquet file or a folder of them: a path, s3://…, "
        "hf://datasets/org/name, or builtin:NAME.",
    )
    validation: str = Field(
        "", description="Validation data, in the same forms; empty: a part of the training data is held out."
    )
    validation_size: CountOrFraction = Field(
        0.05, description="Fraction or number of records held out for validation when `validation` is empty."
    )
    max_length: int = Field(1024, ge=8, description="Maximum number of tokens of prompt and answer together.")
    max_prompt_length: int = Field(
        512, ge=4, description="Maximum number of tokens of a prompt; a longer one is cut at its beginning."
    )
    max_train_records: int = Field(
        0, ge=0, description="Number of training records to use, the first ones after the split; 0 for all."
    )
    max_validation_records: int = Field(
        0, ge=0, description="Number of validation records to use, the first ones; 0 for all."
    )
    on_bad_record: Literal["fail", "skip"] = Field(
        "fail", description="What to do with a record that cannot be parsed: refuse the data set, or skip and count it."
    )

    _fraction = field_validator("validation_size")(check_fraction)

    @model_validator(mode="after")
    def _check_prompt_length(self) -> DataSettings:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) leaves no room for an answer within "
                f"max_length ({self.max_length}); make it smaller"
            )
        return self


Epochs = Annotated[int, Field(ge=1, le=32)]


class SpinSettings(PoolSettings):
    """Number of iterations and epochs, weight of the log-ratio, and the pairs that are trained on."""

    max_iterations: int = Field(
        3, ge=1, le=32, description="Number of self-play iterations; may be changed when the run is resumed."
    )
    max_epochs: Epochs | list[Epochs] = Field(
        1,
        description="Number of epochs per iteration: one number, or a list with one per iteration; fixed when the "
        "pipeline is compiled.",
    )
    max_steps: int = Field(
        -1, ge=-1, description="Maximum number of optimizer steps over all iterations; -1 for no limit."
    )
    ref_policy_kl_penalty: PositiveFloat | list[PositiveFloat] = Field(
        0.2, description="Weight beta of the log-ratio: one number, or a list with one per iteration."
    )
    reset_optimizer: bool = Field(
        True,
        description="Whether each iteration starts with a fresh optimizer state instead of the final state of the "
        "iteration that trained its reference.",
    )

    @model_validator(mode="after")
    def _check_lists(self) -> SpinSettings:
        check_per_iteration("ref_policy_kl_penalty", self.ref_policy_kl_penalty, self.max_iterations)
        check_per_iteration("max_epochs", self.max_epochs, self.max_iterations)
        return self

    def epochs(self, iteration: int) -> int:
        """Number of epochs of an iteration."""
        return per_iteration(self.max_epochs, iteration)

    def beta(self, iteration: int) -> float:
        """Weight of the log-ratio in an iteration."""
        return per_iteration(self.ref_policy_kl_penalty, iteration)


class TrainingSettings(Section):
    """Optimizer, batches, precision and parallelism of training."""

    backend: Literal["auto", "torch", "deepspeed"] = Field(
        "auto", description="Training backend; auto: DeepSpeed for more than one rank, else plain torch."
    )
    zero_stage: Literal[0, 1, 2, 3, "auto"] = Field(
        2, description="DeepSpeed ZeRO stage; auto: the lowest stage whose estimated memory fits."
    )
    offload_optimizer: bool = Field(
        False,
        description="Whether DeepSpeed keeps the optimizer state in CPU memory and updates weights on the CPU; needs "
        "zero_stage >= 1.",
    )
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="Compute dtype, under autocast; weights stay float32. auto: bf16 where the device computes it.",
    )
    packing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether sequences are packed without padding and each prompt is computed once for both answers; "
        "auto: where benchmarks show a gain.",
    )
    global_batch_size: int = Field(64, ge=1, description="Number of pairs per optimizer step, over all ranks.")
    micro_batch_size: int = Field(1, ge=1, description="Number of pairs per forward pass of one rank.")
    optimizer: Literal["adamw", "rmsprop"] = Field("adamw", description="Optimizer.")
    lr: PositiveFloat | list[PositiveFloat] = Field(
        5e-7, description="Peak learning rate: one number, or a list with one per iteration."
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="Decay of the learning rate after warm-up; it starts anew with each iteration."
    )
    warmup: CountOrFraction = Field(0.1, description="Warm-up, as a fraction or number of an iteration's steps.")
    min_lr: float = Field(0.0, ge=0, description="Learning rate at the end of the schedule.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the optimizer.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay rate of the first moment.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay rate of the second moment.")
    rmsprop_alpha: float = Field(0.99, ge=0, lt=1, description="RMSprop's smoothing constant.")
    eps: PositiveFloat = Field(1e-8, description="Term added to the denominator of the optimizer's update.")
    gradient_clip_val: float = Field(1.0, ge=0, description="Maximum norm of the gradient; 0 disables clipping.")
    limit_train_batches: CountOrFraction = Field(
        1.0, description="Fraction or number of an epoch's global batches to train on."
    )
    save_interval: int = Field(
        0, ge=0, description="Number of optimizer steps between saves within an epoch; 0 saves at its end only."
    )
    gradient_checkpointing: bool = Field(
        False, description="Whether activations are recomputed in the backward pass to save memory."
    )

    _fractions = field_validator("warmup", "limit_train_batches")(check_fraction)
    _not_none = field_validator("limit_train_batches")(check_some)

    @field_validator("zero_stage", mode="before")
    @classmethod
    def _as_integer(cls, value: object) -> object:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @model_validator(mode="after")
    def _check_batch_sizes(self) -> TrainingSettings:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be a multiple of "
                f"micro_batch_size ({self.micro_batch_size})"
            )
        return self

    @model_validator(mode="after")
    def _check_rates(self) -> TrainingSettings:
        lowest = min(self.lr) if isinstance(self.lr, list) else self.lr
        if self.min_lr > lowest:
            raise ValueError(f"min_lr ({self.min_lr}) exceeds lr ({lowest}); the schedule falls from lr to min_lr")
        return self

    def peak_lr(self, iteration: int) -> float:
        """Peak learning rate of an iteration."""
        return per_iteration(self.lr, iteration)


class ValidationSettings(Section):
    """Negative log-likelihood of held-out human answers, and answers sampled to their prompts."""

    batch_size: int = Field(8, ge=1, description="Number of answers per forward pass.")
    limit_val_batches: CountOrFraction = Field(1.0, description="Fraction or number of validation batches to use.")
    val_check_interval: CountOrFraction = Field(
        1.0,
        description="Interval of validation within an epoch, as a number of steps or a fraction of the epoch; 1.0 "
        "validates at its end only.",
    )
    num_samples: int = Field(
        32,
        ge=0,
        description="Number of held-out prompts that each validated policy answers, to measure length and repetition; "
        "0 for none.",
    )

    _fractions = field_validator("limit_val_batches", "val_check_interval")(check_fraction)
    _not_none = field_validator("limit_val_batches")(check_some)


class Settings(Section):
    """All sections, as a configuration file holds them and `run.json` records them."""

    run: RunSettings = RunSettings()
    model: ModelSettings
    data: DataSettings
    spin: SpinSettings = SpinSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    generation: GenerationSettings = GenerationSettings()
    training: TrainingSettings = TrainingSettings()
    lora: LoraSettings = LoraSettings()
    validation: ValidationSettings = ValidationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    selection: SelectionSettings = SelectionSettings()
    hardware: HardwareSettings = HardwareSettings()
    placement: PlacementSettings = PlacementSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _check_sections(self) -> Settings:
        check_per_iteration("training.lr", self.training.lr, self.spin.max_iterations)
        check_per_iteration("generation.temperature", self.generation.temperature, self.spin.max_iterations)
        micro_batch, ranks = self.training.micro_batch_size, self.hardware.world_size
        if self.training.global_batch_size % (micro_batch * ranks):
            raise ValueError(
                f"training.global_batch_size ({self.training.global_batch_size}) must be a multiple of "
                f"training.micro_batch_size x hardware.ranks x hardware.nodes ({micro_batch} x "
                f"{self.hardware.ranks} x {self.hardware.nodes})"
            )
        if self.training.backend == "torch" and ranks > 1:
            raise ValueError(
                f"training.backend = 'torch' runs one rank, but hardware.ranks x hardware.nodes = {ranks}; "
                "use 'deepspeed'"
            )
        if self.training.offload_optimizer:
            self._check_offload(ranks)
        if self.lora.is_on:
            self._check_lora(ranks)
        if self.evaluation.judge_url:
            self._check_judge()
        if self.selection.limits and not self.validation.num_samples:
            raise ValueError(
                f"{' and '.join(self.selection.limits)} limit sampled answers, but validation.num_samples is 0; "
                "set it, e.g. to 32, or remove the limits"
            )
        return self

    def _check_judge(self) -> None:
        requested, sampled = self.evaluation.judge_num_samples, self.validation.num_samples
        if not sampled:
            raise ValueError(
                "evaluation.judge_url needs sampled answers to score, but validation.num_samples is 0; "
                "set it, e.g. to 32, or unset evaluation.judge_url"
            )
        if requested > sampled:
            raise ValueError(
                f"evaluation.judge_num_samples = {requested} exceeds validation.num_samples = {sampled}; "
                "lower the former or raise the latter"
            )

    def _check_lora(self, ranks: int) -> None:
        if not self.spin.reset_optimizer:
            raise ValueError(
                f"spin.reset_optimizer = false is not supported with lora.r = {self.lora.r}: every iteration trains a "
                "fresh adapter, to which the optimizer state of the previous one does not apply; set it to true"
            )
        is_deepspeed = self.training.backend == "deepspeed" or ranks > 1
        if self.lora.is_quantized and is_deepspeed and self.training.zero_stage not in (0, 1, 2):
            raise ValueError(
                f"lora.quantize = {self.lora.quantize!r} is not supported with training.zero_stage = "
                f"{self.training.zero_stage!r}, which partitions the weights among ranks: 4-bit weights cannot be "
                "partitioned; use 0, 1 or 2"
            )

    def _check_offload(self, ranks: int) -> None:
        training = self.training
        if training.backend == "torch" or (training.backend == "auto" and ranks == 1):
            raise ValueError(
                "training.offload_optimizer = true needs DeepSpeed, but the backend is plain torch; "
                "set training.backend = 'deepspeed'"
            )
        if training.zero_stage == 0:
            raise ValueError(
                "training.offload_optimizer = true needs training.zero_stage = 1, 2 or 3; found 0, which has no offload"
            )
