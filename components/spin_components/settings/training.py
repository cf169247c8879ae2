"""Settings of training: `[training]`, `[lora]`, `[warm_up]`, `[control]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from spin_components.settings.section import (
    CountOrFraction,
    PositiveFloat,
    Section,
    check_fraction,
    check_some,
    per_iteration,
)

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]


class LoraSettings(Section):
    """Training of a low-rank adapter (LoRA), with the base model's weights in float32 or in 4 bits (QLoRA)."""

    r: int = Field(0, ge=0, le=4096, description="Rank of the adapter; 0 trains all weights instead.")
    alpha: PositiveFloat = Field(16.0, description="peft's lora_alpha; the adapter's output is scaled by alpha / r.")
    dropout: float = Field(
        0.0, description="Must be 0, since policy and reference have to agree exactly before the first step."
    )
    target_modules: Literal["all-linear"] | Annotated[list[ModuleName], Field(min_length=1)] = Field(
        "all-linear",
        description="Layers that get an adapter: all linear ones except the output layer, or a list of name suffixes.",
    )
    quantize: Literal["none", "nf4"] = Field(
        "none",
        description="Quantization of the base model's linear layers in training and scoring: none, or 4-bit NF4.",
    )
    export: Literal["merged", "adapter"] = Field(
        "merged",
        description="What is stored of each policy: its merged weights, or the adapter with a reference to the model "
        "below it.",
    )

    @field_validator("dropout")
    @classmethod
    def _check_dropout(cls, value: float) -> float:
        if value != 0:
            raise ValueError(
                f"lora.dropout = {value} is not supported: with dropout the policy would differ from its reference "
                "before the first step, where the loss is checked to be ln 2. Set it to 0"
            )
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> LoraSettings:
        if not self.r and (self.quantize != "none" or self.export != "merged"):
            raise ValueError(
                "lora.quantize and lora.export apply to an adapter, but lora.r = 0 trains none; set lora.r"
            )
        if self.quantize != "none" and self.export != "adapter":
            raise ValueError(
                f"lora.quantize = {self.quantize!r} with lora.export = 'merged' would quantize each merged policy "
                "again and lose most of what was learned; set lora.export = 'adapter'. "
                "`spin-pipeline export` can still write merged weights"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether an adapter is trained, not all weights."""
        return self.r > 0

    @property
    def is_quantized(self) -> bool:
        """Whether training and scoring use 4-bit weights."""
        return self.quantize != "none"

    def training_inputs(self) -> dict[str, Any]:
        """Settings that a trained policy depends on, by name; empty where all weights are trained."""
        return {f"lora.{name}": value for name, value in self.model_dump(mode="json").items()} if self.is_on else {}

    def scoring_inputs(self) -> dict[str, Any]:
        """Settings that log-probabilities of a given model depend on, by name; empty without quantization."""
        return {"lora.quantize": self.quantize} if self.is_quantized else {}


class WarmUpSettings(Section):
    """Supervised fine-tuning on the human answers before iteration 0, whose reference it makes; batches and optimizer
    are those of `[training]`."""

    max_epochs: int = Field(
        0,
        ge=0,
        le=64,
        description="Largest number of epochs; 0 for no warm-up. The epoch of lowest val_loss is kept, and the base "
        "model where none is lower than its. Whether there is a warm-up is fixed when the pipeline is compiled.",
    )
    patience: int = Field(
        1,
        ge=0,
        description="Number of consecutive epochs without a lower val_loss after which the warm-up ends; 0 for all "
        "epochs.",
    )
    lr: PositiveFloat = Field(
        2e-5,
        description="Peak learning rate; `training.lr_schedule` and `training.warmup` extend over all `max_epochs`.",
    )

    @property
    def is_on(self) -> bool:
        """Whether there is a warm-up."""
        return self.max_epochs > 0


class ControlSettings(Section):
    """The control: supervised fine-tuning from where self-play began, with as many updates, to compare with it."""

    sft: bool = Field(
        False,
        description="Whether each iteration has a control, which trains on the human answers alone: the same prompts "
        "in the same batches, the same number of updates and schedule. No iteration waits for it. Fixed when the "
        "pipeline is compiled.",
    )
    lr: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Peak learning rate of the control; 0 for that of the iteration."
    )


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
        "auto: where a kernel of attention fits the model, else the log says why not; on: or the run ends.",
    )
    global_batch_size: int = Field(64, ge=1, description="Number of pairs per optimizer step, over all ranks.")
    micro_batch_size: int = Field(1, ge=1, description="Number of pairs per forward pass of one rank.")
    micro_batch_tokens: int = Field(
        0,
        ge=0,
        description="Most tokens per forward pass of one rank, as they are computed: packed, each prompt once; padded, "
        "with padding. A micro-batch then has up to micro_batch_size pairs, and a longer pair one of its own; 0: no "
        "limit.",
    )
    optimizer: Literal["adamw", "rmsprop"] = Field("adamw", description="Optimizer.")
    lr: PositiveFloat | list[PositiveFloat] = Field(
        5e-7, description="Peak learning rate: one number, or a list with one per iteration."
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="Decay of the learning rate after warm-up; see `lr_schedule_span`."
    )
    lr_schedule_span: Literal["iteration", "run"] = Field(
        "iteration",
        description="What warm-up and decay extend over: each iteration anew, or, as in NeMo, the epochs of all "
        "iterations together, whose number is then fixed.",
    )
    warmup: CountOrFraction = Field(
        0.1, description="Warm-up, as a fraction or number of the steps of the schedule's span."
    )
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

    def budget_inputs(self) -> dict[str, int]:
        """`micro_batch_tokens` by name, where it is set: how rounding falls depends on it."""
        return {"training.micro_batch_tokens": self.micro_batch_tokens} if self.micro_batch_tokens else {}

    def peak_lr(self, iteration: int) -> float:
        """Peak learning rate of an iteration."""
        return per_iteration(self.lr, iteration)
