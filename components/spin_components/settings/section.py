"""Base class and shared field types of the settings' sections."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


def _count_or_fraction(value: object) -> object:
    """Parse text: `"3"` is the count 3, `"1.0"` the fraction 1.0; JSON numbers do not keep that difference."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return float(value)
    return value


def check_fraction(value: int | float) -> int | float:
    """Validate a `CountOrFraction`: a float is within [0, 1], an integer at least 0.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, float) and not 0.0 <= value <= 1.0:
        raise ValueError("a float is a fraction, from 0.0 to 1.0; write an integer for a count")
    if isinstance(value, int) and value < 0:
        raise ValueError("a count is 0 or more")
    return value


def check_some(value: int | float) -> int | float:
    """Validate that a count or fraction is not 0.

    Raises:
        ValueError: it is.
    """
    if value == 0:
        raise ValueError("0 selects nothing; give a count of 1 or more, or a fraction above 0.0")
    return value


CountOrFraction = Annotated[
    int | float,
    BeforeValidator(_count_or_fraction),
    PlainSerializer(repr, return_type=str, when_used="json"),
]
"""An integer is a count, a float a fraction, as in NeMo and Lightning; serialized to JSON as text, to keep the type."""

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Number = TypeVar("Number", int, float)


def per_iteration(value: Number | list[Number], iteration: int) -> Number:
    """Return the value of an iteration: the number itself, or the list's entry."""
    return value[iteration] if isinstance(value, list) else value


def check_per_iteration(name: str, value: Number | list[Number], max_iterations: int) -> None:
    """Check that a list has an entry for every iteration.

    Raises:
        ValueError: it is too short.
    """
    if isinstance(value, list) and len(value) < max_iterations:
        raise ValueError(
            f"{name} has {len(value)} entries for {max_iterations} iterations; give one number, or one per iteration"
        )


class Section(BaseModel):
    """Base class of a section: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, protected_namespaces=())
