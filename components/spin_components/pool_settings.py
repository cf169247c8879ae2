"""Which pairs an iteration trains on: a part of `[spin]`."""

from __future__ import annotations

from math import inf
from typing import Literal

from pydantic import Field, field_validator

from spin_components.section import Section


class PoolSettings(Section):
    """History, and pairs that teach little."""

    history: int = Field(
        1,
        ge=0,
        le=32,
        description="train also on the pairs of so many iterations before, scored again; 1: the paper, 0: NeMo. "
        "A run begun by --fork-from starts without any",
    )
    history_ratio: float | Literal["all"] = Field(
        "all", description="at most so many older pairs for each new one, drawn by seed; all: as many as there are"
    )
    max_similarity: float = Field(
        1.0,
        gt=0,
        le=1,
        description="drop a pair whose answers are as alike as that or more: 1 - edit distance / length of the longer, "
        "in tokens; 1: identical ones only",
    )
    max_length_ratio: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="drop a pair of which one answer has more than so many times the other's tokens; 0 is off",
    )

    @field_validator("history_ratio", mode="before")
    @classmethod
    def _share_or_all(cls, value: object) -> object:
        if value == "all" or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < inf):
            return value
        raise ValueError("give a number above 0, or 'all'; for no older pairs, spin.history = 0")

    @field_validator("max_length_ratio")
    @classmethod
    def _off_or_above_one(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError("the longer answer has at least 1 time the tokens of the shorter; give 1 or more, or 0")
        return value
