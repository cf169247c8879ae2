"""Settings from plain values, with every mistake explained at once."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from spin_components.errors import ConfigError
from spin_components.settings import Settings


def parse_settings(values: dict[str, Any], *, source: str) -> Settings:
    """Check plain values, section by section.

    Args:
        values: section name to its table.
        source: named in the error, e.g. the file.

    Raises:
        ConfigError: lists each wrong key, type and range, with the value found and what is allowed.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        lines = _lines(error.errors(include_url=False))
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"{count} in {source}:\n" + "\n".join(f"  {line}" for line in lines)) from error


def _lines(details: list[ErrorDetails]) -> list[str]:
    """One line a field: a union reports each of its members' failures, a person changes the field."""
    places: dict[str, list[str]] = {}
    for detail in details:
        place = ".".join(str(part) for part in detail["loc"][:2]) or "configuration"
        places.setdefault(place, []).append(_explain(detail))
    return [f"{place}{'; or '.join(dict.fromkeys(messages))}" for place, messages in sorted(places.items())]


def _explain(detail: ErrorDetails) -> str:
    """What follows the name of the field."""
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        return f": unknown key; {_suggest(detail)}"
    if detail["type"] == "missing":
        return ": missing; it has no default"
    if not detail["loc"] or isinstance(detail["input"], (dict, BaseModel)):
        return f": {message}"
    return f" = {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _suggest(detail: ErrorDetails) -> str:
    section, *rest = (str(part) for part in detail["loc"])
    known = list(Settings.model_fields)
    if rest:
        annotation = Settings.model_fields[section].annotation
        model = annotation if isinstance(annotation, type) else get_args(annotation)[0]
        known = list(model.model_fields)
    near = difflib.get_close_matches(rest[0] if rest else section, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
