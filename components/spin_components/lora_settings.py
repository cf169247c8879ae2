"""Settings of LoRA adapters, by peft's names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from spin_components.section import PositiveFloat, Section

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
