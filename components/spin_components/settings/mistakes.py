"""Parsing of settings, with one error message that lists every mistake."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from spin_components.errors import ConfigError
from spin_components.settings.settings import Settings

_Settings = TypeVar("_Settings", bound=Settings)


def parse_settings(values: dict[str, Any], *, source: str) -> Settings:
    """Parse the settings of a run; see `parse`."""
    return parse(Settings, values, source=source)


def parse(model: type[_Settings], values: dict[str, Any], *, source: str) -> _Settings:
    """Validate plain values.

    Args:
        model: `Settings` or a subclass.
        values: section name to its table.
        source: name of the values in the error, e.g. the file.

    Raises:
        ConfigError: values are invalid; the message lists each with its key, the value and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = _lines(model, error.errors(include_url=False))
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"{count} in {source}:\n" + "\n".join(f"  {line}" for line in lines)) from error


def _lines(model: type[Settings], details: list[ErrorDetails]) -> list[str]:
    """One line per field; for a union type, pydantic reports the failures of each member."""
    by_field: dict[str, list[ErrorDetails]] = {}
    for detail in details:
        by_field.setdefault(".".join(str(part) for part in detail["loc"][:2]) or "configuration", []).append(detail)
    return [
        f"{name}{'; or '.join(dict.fromkeys(_explain(model, detail) for detail in _relevant(field_details)))}"
        for name, field_details in sorted(by_field.items())
    ]


def _relevant(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """For a setting that is a number or a list: the errors of the type that was given."""
    kept = [
        detail
        for detail in details
        if detail["type"] != "list_type"
        and not (isinstance(detail["input"], list) and detail["type"] in ("int_type", "float_type"))
    ]
    return kept or details


def _explain(model: type[Settings], detail: ErrorDetails) -> str:
    """The text after the name of the field: the value and what is wrong with it."""
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        return f": unknown key; {_suggest(model, detail)}"
    if detail["type"] == "missing":
        return ": missing; it is required and has no default"
    if not detail["loc"] or isinstance(detail["input"], (dict, BaseModel)):
        return f": {message}"
    return f" = {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _suggest(model: type[BaseModel], detail: ErrorDetails) -> str:
    *tables, key = (str(part) for part in detail["loc"])
    for table in tables:
        annotation = model.model_fields[table].annotation
        model = annotation if isinstance(annotation, type) else get_args(annotation)[0]
    known = list(model.model_fields)
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
