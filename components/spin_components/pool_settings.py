"""The settings of `[spin]` that select the pairs of an iteration."""

from __future__ import annotations

from math import inf
from typing import Literal

from pydantic import Field, field_validator

from spin_components.section import Section


class PoolSettings(Section):
    """Pairs of earlier iterations, and filters on pairs."""

    history: int = Field(
        1,
        ge=0,
        le=32,
        description="Number of earlier iterations whose pairs are also trained on, scored again under the current "
        "reference; 1: the paper, 0: NeMo. A run started by --fork-from begins without earlier pairs.",
    )
    history_ratio: float | Literal["all"] = Field(
        "all",
        description="Maximum number of earlier pairs per new pair, drawn at random by the seed; all: no maximum.",
    )
    max_similarity: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Similarity of a pair's answers, 1 - edit distance / length of the longer one in tokens, from "
        "which the pair is dropped; 1 drops identical answers only.",
    )
    max_length_ratio: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Largest ratio of a pair's longer answer to its shorter one, in tokens; a pair above it is "
        "dropped. 0 for no limit.",
    )

    @field_validator("history_ratio", mode="before")
    @classmethod
    def _check_history_ratio(cls, value: object) -> object:
        if value == "all" or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < inf):
            return value
        raise ValueError("give a number above 0, or 'all'; for no older pairs, spin.history = 0")

    @field_validator("max_length_ratio")
    @classmethod
    def _check_max_length_ratio(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError("the ratio of longer to shorter answer is at least 1; give 1 or more, or 0 for no limit")
        return value
