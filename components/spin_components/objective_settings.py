"""What an iteration minimises, beside the paper's own objective, which is the default."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from spin_components.section import Section


class ObjectiveSettings(Section):
    """The loss of a pair's margin, and what is added to it; formulas and papers are in `algorithm.loss`."""

    loss: Literal["logistic", "hinge", "correlation", "least_squares"] = Field(
        "logistic", description="of the margin m: log(1 + e^-m), max(0, 1 - m), 1 - m, (1 - m)^2"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of pairs taken to be the wrong way round; logistic only"
    )
    length_normalized: bool = Field(False, description="rewards from log-probabilities a token, not from their sums")
    sft_weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="times the human answer's negative log-likelihood a token, added"
    )
    base_weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="alpha-SPIN: the opponent is reference^(1 - alpha) x base^alpha; the base scores each pair as well",
    )

    @model_validator(mode="after")
    def _smoothing_is_logistic(self) -> ObjectiveSettings:
        if self.label_smoothing and self.loss != "logistic":
            raise ValueError(
                f"label_smoothing = {self.label_smoothing} has a meaning for loss = 'logistic' only, not for "
                f"{self.loss!r}; set it to 0, or take the logistic loss"
            )
        return self
