"""Settings of the training objective; the default is the objective of the paper (arXiv:2401.01335)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from spin_components.section import Section


class ObjectiveSettings(Section):
    """Loss of a pair's margin and terms added to it; formulas and papers are in `algorithm.loss`."""

    loss: Literal["logistic", "hinge", "correlation", "least_squares"] = Field(
        "logistic",
        description="Loss of the margin m: log(1 + e^-m), max(0, 1 - m), 1 - m, or (1 - m)^2.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Assumed fraction of pairs with swapped answers; logistic loss only."
    )
    length_normalized: bool = Field(
        False, description="Whether rewards use mean log-probabilities per token instead of their sums."
    )
    sft_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of an added SFT term, the human answer's negative log-likelihood per token.",
    )
    base_weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="alpha of alpha-SPIN, whose opponent is reference^(1 - alpha) x base^alpha; above 0 the base model "
        "scores each pair as well.",
    )

    @model_validator(mode="after")
    def _check_label_smoothing(self) -> ObjectiveSettings:
        if self.label_smoothing and self.loss != "logistic":
            raise ValueError(
                f"label_smoothing = {self.label_smoothing} is defined for loss = 'logistic' only, not for "
                f"{self.loss!r}; set it to 0, or use the logistic loss"
            )
        return self
