"""What is trained: all weights, or a low-rank adapter of them; by peft's names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from spin_components.section import PositiveFloat, Section

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]


class LoraSettings(Section):
    """Low-rank adapters (LoRA), on weights as they are or held in 4 bits (QLoRA)."""

    r: int = Field(0, ge=0, le=4096, description="rank of the adapter; 0 trains all weights")
    alpha: PositiveFloat = Field(16.0, description="peft's lora_alpha: the adapter counts alpha / r times")
    dropout: float = Field(
        0.0, description="must be 0: policy and reference have to agree exactly before the first step"
    )
    target_modules: Literal["all-linear"] | Annotated[list[ModuleName], Field(min_length=1)] = Field(
        "all-linear", description="which layers: all linear ones but the output, or a list of ends of names"
    )
    quantize: Literal["none", "nf4"] = Field(
        "none", description="nf4: the base model's linear layers in 4 bits wherever log-probabilities are computed"
    )
    export: Literal["merged", "adapter"] = Field(
        "merged", description="what storage holds of each policy: all its weights, or the adapter and what it sits on"
    )

    @field_validator("dropout")
    @classmethod
    def _none(cls, value: float) -> float:
        if value != 0:
            raise ValueError(
                f"lora.dropout = {value} is refused: with dropout the policy would not equal its reference before the "
                "first step, and the loss there, ln 2, is what shows that both are computed alike. Set it to 0"
            )
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> LoraSettings:
        if not self.r and (self.quantize != "none" or self.export != "merged"):
            raise ValueError(
                "lora.quantize and lora.export are about an adapter, and lora.r = 0 trains none; set lora.r"
            )
        if self.quantize != "none" and self.export != "adapter":
            raise ValueError(
                f"lora.quantize = {self.quantize!r} with lora.export = 'merged' would round each merged policy to "
                "4 bits again and lose most of what was learned; set lora.export = 'adapter'. "
                "`spin-pipeline export` merges all the same"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether an adapter is trained instead of all weights."""
        return self.r > 0

    @property
    def is_quantized(self) -> bool:
        """Whether scores and updates are computed on 4-bit weights."""
        return self.quantize != "none"

    def training_inputs(self) -> dict[str, Any]:
        """What a trained policy depends on, by the settings' names; nothing where all weights are trained."""
        return {f"lora.{name}": value for name, value in self.model_dump(mode="json").items()} if self.is_on else {}

    def scoring_inputs(self) -> dict[str, Any]:
        """What log-probabilities of a given model depend on; nothing where its weights are taken as they are."""
        return {"lora.quantize": self.quantize} if self.is_quantized else {}
