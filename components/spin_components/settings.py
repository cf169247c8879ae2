"""The settings of a run: one frozen section a step, limits in the types.

Names and meanings follow NeMo-Aligner's SPIN configuration where it has them. Nothing heavy is imported here:
the command line reads these before it knows whether torch is installed.
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
"""Settings that are a number, or a list with one number an iteration."""


def parse_duration(text: str) -> float:
    """Seconds in `""` (no limit: infinity), `"90"`, or NeMo's `"DD:HH:MM:SS"`.

    Raises:
        ValueError: the text has neither form.
    """
    if not text:
        return float("inf")
    parts = text.split(":")
    if len(parts) not in (1, 4) or not all(part.replace(".", "", 1).isdigit() for part in parts):
        raise ValueError(f"{text!r} is not a time; write seconds, or days:hours:minutes:seconds like 00:03:50:00")
    if len(parts) == 1:
        return float(parts[0])
    days, hours, minutes, seconds = (float(part) for part in parts)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class RunSettings(Section):
    """Where the run lives and what holds for all of it."""

    name: str = Field("spin", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", description="name shown in the UI")
    uri: str = Field("", description="folder or s3://bucket/prefix of the run; the same one resumes")
    seed: int = Field(0, ge=0, lt=2**31, description="fixes split, sampling and data order")
    max_time: str = Field("", description="wall-clock limit of one attempt: seconds or DD:HH:MM:SS; empty for none")

    @field_validator("max_time")
    @classmethod
    def _readable(cls, value: str) -> str:
        parse_duration(value)
        return value

    @property
    def max_time_s(self) -> float:
        return parse_duration(self.max_time)


class ModelSettings(Section):
    """The model that iteration 0 starts from."""

    base: str = Field(
        min_length=1,
        description="folder in Hugging Face layout: path, s3://…, hf://org/name@revision; or builtin:NAME",
    )
    sha256: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="refuse a base model whose files have another digest"
    )
    forked_from: str = Field("", description="run and iteration that the base comes from; set by --fork-from")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class DataSettings(Section):
    """Prompts with their human-written answers."""

    train: str = Field(
        min_length=1,
        description="JSONL or Parquet file, or a folder of them: path, s3://…, hf://datasets/org/name; or builtin:NAME",
    )
    validation: str = Field("", description="the same for validation; empty: split off train")
    validation_size: CountOrFraction = Field(
        0.05, description="share or number of records split off when no file is given"
    )
    max_length: int = Field(1024, ge=8, description="tokens of prompt and answer together")
    max_prompt_length: int = Field(512, ge=4, description="a longer prompt keeps its end")
    max_train_records: int = Field(0, ge=0, description="use the first so many after the split; 0 for all")
    max_validation_records: int = Field(0, ge=0, description="likewise for validation")
    on_bad_record: Literal["fail", "skip"] = Field(
        "fail", description="refuse the data set, or drop the record and count it"
    )

    _fraction = field_validator("validation_size")(check_fraction)

    @model_validator(mode="after")
    def _room_for_an_answer(self) -> DataSettings:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) leaves no room for an answer within "
                f"max_length ({self.max_length}); make it smaller"
            )
        return self


Epochs = Annotated[int, Field(ge=1, le=32)]


class SpinSettings(PoolSettings):
    """The game: how many iterations, how strongly the reference holds, which pairs are trained on."""

    max_iterations: int = Field(3, ge=1, le=32, description="rounds of self-play; may be lowered or raised later")
    max_epochs: Epochs | list[Epochs] = Field(
        1, description="epochs an iteration: a number, or one number an iteration; fixed when compiled"
    )
    max_steps: int = Field(-1, ge=-1, description="optimizer steps over all iterations; -1 for no limit")
    ref_policy_kl_penalty: PositiveFloat | list[PositiveFloat] = Field(
        0.2, description="beta: a number, or one number an iteration"
    )
    reset_optimizer: bool = Field(
        True, description="each iteration starts with a fresh optimizer; false: with the state its reference ended with"
    )

    @model_validator(mode="after")
    def _one_number_an_iteration(self) -> SpinSettings:
        check_per_iteration("ref_policy_kl_penalty", self.ref_policy_kl_penalty, self.max_iterations)
        check_per_iteration("max_epochs", self.max_epochs, self.max_iterations)
        return self

    def epochs(self, iteration: int) -> int:
        return per_iteration(self.max_epochs, iteration)

    def beta(self, iteration: int) -> float:
        return per_iteration(self.ref_policy_kl_penalty, iteration)


class TrainingSettings(Section):
    """How the policy learns within an iteration."""

    backend: Literal["auto", "torch", "deepspeed"] = Field("auto", description="auto: DeepSpeed for more than one rank")
    zero_stage: Literal[0, 1, 2, 3, "auto"] = Field(
        2, description="DeepSpeed ZeRO stage; auto: the lowest whose estimated memory fits"
    )
    offload_optimizer: bool = Field(
        False, description="optimizer state and update in the machine's memory, by the CPU: DeepSpeed, zero_stage >= 1"
    )
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="of compute; weights stay float32")
    packing: Literal["auto", "on", "off"] = Field(
        "auto", description="no padding, each prompt computed once for both answers; auto: where it was measured to pay"
    )
    global_batch_size: int = Field(64, ge=1, description="pairs an optimizer step")
    micro_batch_size: int = Field(1, ge=1, description="pairs a forward pass")
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    lr: PositiveFloat | list[PositiveFloat] = Field(5e-7, description="peak: a number, or one number an iteration")
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: CountOrFraction = Field(0.1, description="of an iteration's steps")
    min_lr: float = Field(0.0, ge=0, description="the schedule ends here")
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    rmsprop_alpha: float = Field(0.99, ge=0, lt=1)
    eps: PositiveFloat = 1e-8
    gradient_clip_val: float = Field(1.0, ge=0, description="norm; 0 is off")
    limit_train_batches: CountOrFraction = Field(1.0, description="of an epoch's global batches")
    save_interval: int = Field(0, ge=0, description="steps between saves inside an epoch; 0: only its end")
    gradient_checkpointing: bool = False

    _fractions = field_validator("warmup", "limit_train_batches")(check_fraction)
    _not_none = field_validator("limit_train_batches")(check_some)

    @field_validator("zero_stage", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @model_validator(mode="after")
    def _batches_divide(self) -> TrainingSettings:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be a multiple of "
                f"micro_batch_size ({self.micro_batch_size})"
            )
        return self

    @model_validator(mode="after")
    def _rates_in_order(self) -> TrainingSettings:
        lowest = min(self.lr) if isinstance(self.lr, list) else self.lr
        if self.min_lr > lowest:
            raise ValueError(f"min_lr ({self.min_lr}) exceeds lr ({lowest}); the schedule falls from lr to min_lr")
        return self

    def peak_lr(self, iteration: int) -> float:
        return per_iteration(self.lr, iteration)


class ValidationSettings(Section):
    """Negative log-likelihood of held-out human answers."""

    batch_size: int = Field(8, ge=1, description="answers a forward pass")
    limit_val_batches: CountOrFraction = Field(1.0, description="of the validation batches")
    val_check_interval: CountOrFraction = Field(
        1.0, description="within an epoch: every so many steps, or share of it; 1.0 is its end only"
    )

    num_samples: int = Field(
        32, ge=0, description="held-out prompts that each validated policy also answers: lengths, repetition; 0 is off"
    )

    _fractions = field_validator("limit_val_batches", "val_check_interval")(check_fraction)
    _not_none = field_validator("limit_val_batches")(check_some)


class Settings(Section):
    """All sections: what a configuration file holds and `run.json` records."""

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
    def _consistent(self) -> Settings:
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
            raise ValueError(f"training.backend = 'torch' has one rank, hardware asks for {ranks}; use 'deepspeed'")
        if self.training.offload_optimizer:
            self._check_offload(ranks)
        if self.lora.is_on:
            self._check_lora(ranks)
        if self.evaluation.judge_url:
            self._check_judge()
        if self.selection.limits and not self.validation.num_samples:
            raise ValueError(
                f"{' and '.join(self.selection.limits)} are held against sampled answers, but validation.num_samples "
                "is 0; set it to 32, say, or leave the limits out"
            )
        return self

    def _check_judge(self) -> None:
        wanted, sampled = self.evaluation.judge_num_samples, self.validation.num_samples
        if not sampled:
            raise ValueError(
                "evaluation.judge_url asks for a judge of sampled answers, but validation.num_samples is 0; "
                "set it to 32, say, or leave the judge out"
            )
        if wanted > sampled:
            raise ValueError(
                f"evaluation.judge_num_samples = {wanted}, but only validation.num_samples = {sampled} answers are "
                "sampled; lower the one or raise the other"
            )

    def _check_lora(self, ranks: int) -> None:
        if not self.spin.reset_optimizer:
            raise ValueError(
                f"spin.reset_optimizer = false does not go with lora.r = {self.lora.r}: every iteration trains a fresh "
                "adapter, which the optimizer state of the one before says nothing about; set it to true"
            )
        is_divided = self.training.backend == "deepspeed" or ranks > 1
        if self.lora.is_quantized and is_divided and self.training.zero_stage not in (0, 1, 2):
            raise ValueError(
                f"lora.quantize = {self.lora.quantize!r} does not go with training.zero_stage = "
                f"{self.training.zero_stage!r}, which divides the weights among ranks: 4-bit weights cannot be "
                "divided; use 0, 1 or 2"
            )

    def _check_offload(self, ranks: int) -> None:
        training = self.training
        if training.backend == "torch" or (training.backend == "auto" and ranks == 1):
            raise ValueError(
                "training.offload_optimizer = true is DeepSpeed's, and training would be plain torch; "
                "set training.backend = 'deepspeed'"
            )
        if training.zero_stage == 0:
            raise ValueError(
                "training.offload_optimizer = true needs training.zero_stage = 1, 2 or 3; found 0, which has no offload"
            )
