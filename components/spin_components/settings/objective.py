"""Settings of the loss: `[objective]`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from spin_components.settings.section import PositiveFloat, Section

_OF_ONE_LOSS = {"nce": ("mu",), "triplet": ("alpha", "history_weight")}
"""Settings of `[objective]` that a single loss has."""


class ObjectiveSettings(Section):
    """Loss of a pair and terms added to it; formulas and papers are in `algorithm.loss`."""

    loss: Literal["logistic", "hinge", "correlation", "least_squares", "nce", "triplet", "sft"] = Field(
        "logistic",
        description="Loss of the margin m: log(1 + e^-m), max(0, 1 - m), 1 - m, or (1 - m)^2; nce (SPACE) classifies "
        "each of the two answers by itself instead; triplet (T-SPIN) prefers the human answer to the generated one and "
        "that to iteration 0's, without a reference. sft is supervised fine-tuning on the human answers alone, by "
        "which to compare.",
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
    mu: PositiveFloat = Field(
        1.0, description="Noise ratio of loss = 'nce': the weight of generated answers; 1: the paper's."
    )
    alpha: PositiveFloat = Field(
        1.0,
        description="The paper's alpha of loss = 'triplet', whose reward of an answer is alpha x its log-probability.",
    )
    history_weight: float = Field(
        0.1,
        ge=0,
        allow_inf_nan=False,
        description="The paper's beta of loss = 'triplet': the weight of the generated answer's advantage over that of "
        "iteration 0, from iteration 1 on; 0 for pairs without a third answer.",
    )

    @model_validator(mode="after")
    def _check_own_settings(self) -> ObjectiveSettings:
        for loss, names in _OF_ONE_LOSS.items():
            for name in names:
                value, default = getattr(self, name), type(self).model_fields[name].default
                if self.loss != loss and value != default:
                    raise ValueError(
                        f"{name} = {value} is defined for loss = {loss!r} only, not for {self.loss!r}; set it to "
                        f"{default:g}"
                    )
        return self

    @model_validator(mode="after")
    def _check_triplet(self) -> ObjectiveSettings:
        if self.loss == "triplet" and self.base_weight:
            raise ValueError(
                f"base_weight = {self.base_weight} is not defined for loss = 'triplet', whose reward has no reference "
                "that the base model could be mixed with; set it to 0, or use a loss of the margin"
            )
        return self

    @model_validator(mode="after")
    def _check_nce(self) -> ObjectiveSettings:
        if self.loss == "nce" and self.base_weight:
            raise ValueError(
                f"base_weight = {self.base_weight} is not defined for loss = 'nce': the mixture of reference and base "
                "is known only up to a factor that cancels in a margin, not in the reward of a single answer; set it "
                "to 0, or use a loss of the margin"
            )
        return self

    @model_validator(mode="after")
    def _check_sft(self) -> ObjectiveSettings:
        unused = [name for name in ("sft_weight", "base_weight", "length_normalized") if getattr(self, name)]
        if self.loss == "sft" and unused:
            raise ValueError(
                f"{unused[0]} = {getattr(self, unused[0])} has no effect with loss = 'sft', which is the negative "
                "log-likelihood per token of the human answer alone; leave it out, or use a loss of self-play"
            )
        return self

    @model_validator(mode="after")
    def _check_label_smoothing(self) -> ObjectiveSettings:
        if self.label_smoothing and self.loss != "logistic":
            raise ValueError(
                f"label_smoothing = {self.label_smoothing} is defined for loss = 'logistic' only, not for "
                f"{self.loss!r}; set it to 0, or use the logistic loss"
            )
        return self

    def answers(self, iteration: int) -> int:
        """Number of answers of a pair in an iteration: three where T-SPIN has those of iteration 0 besides."""
        return 3 if self.loss == "triplet" and self.history_weight and iteration else 2

    def training_inputs(self) -> dict[str, Any]:
        """Settings that a trained policy depends on, by name; without those of other losses."""
        others = {name for loss, names in _OF_ONE_LOSS.items() if loss != self.loss for name in names}
        values = self.model_dump(mode="json", exclude=others)
        return {f"objective.{name}": value for name, value in values.items()}
