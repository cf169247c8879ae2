"""What every section of the settings is made of: frozen tables, and numbers whose kind matters."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


def _count_or_fraction(value: object) -> object:
    """`"3"` is the count 3 and `"1.0"` the fraction 1.0: text keeps the difference that JSON numbers lose."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return float(value)
    return value


def check_fraction(value: int | float) -> int | float:
    if isinstance(value, float) and not 0.0 <= value <= 1.0:
        raise ValueError("a float is a fraction, from 0.0 to 1.0; write an integer for a count")
    if isinstance(value, int) and value < 0:
        raise ValueError("a count is 0 or more")
    return value


def check_some(value: int | float) -> int | float:
    if value == 0:
        raise ValueError("0 leaves nothing; give a count of 1 or more, or a fraction above 0.0")
    return value


CountOrFraction = Annotated[
    int | float,
    BeforeValidator(_count_or_fraction),
    PlainSerializer(repr, return_type=str, when_used="json"),
]
"""An integer counts, a float is a fraction, as in NeMo and Lightning; as JSON it is text, so `1` stays a count."""

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Number = TypeVar("Number", int, float)


def per_iteration(value: Number | list[Number], iteration: int) -> Number:
    """The value that holds in an iteration: the number itself, or the list's entry."""
    return value[iteration] if isinstance(value, list) else value


def check_per_iteration(name: str, value: Number | list[Number], max_iterations: int) -> None:
    """Refuse a list that has no entry for some iteration.

    Raises:
        ValueError: naming both lengths.
    """
    if isinstance(value, list) and len(value) < max_iterations:
        raise ValueError(
            f"{name} has {len(value)} entries for {max_iterations} iterations; give one number, or one an iteration"
        )


class Section(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, protected_namespaces=())
