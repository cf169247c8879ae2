from __future__ import annotations

from typing import Any

import pytest

from spin_components.errors import ConfigError
from spin_components.settings.mistakes import parse_settings
from spin_components.settings.run import DataSettings


def data(**values: Any) -> DataSettings:
    return parse_settings({"model": {"base": "m"}, "data": {"train": "d", **values}}, source="run.toml").data


@pytest.mark.parametrize(
    ("value", "file"),
    [
        ("", ""),
        ("tool_use", ""),
        ("mine.jinja", "mine.jinja"),
        ("templates/mine", "templates/mine"),
        ("s3://bucket/a.jinja", "s3://bucket/a.jinja"),
    ],
)
def test_a_chat_template_is_a_name_or_the_address_of_a_file(value: str, file: str) -> None:
    assert data(chat_template=value).chat_template_file == file


def test_arguments_of_the_template_keep_their_types() -> None:
    arguments = {"enable_thinking": False, "level": 2, "name": "Ada", "list": ["a"], "table": {"a": 1.5}}
    assert data(chat_template_kwargs=arguments).chat_template_kwargs == arguments


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chat_template_kwargs": {"messages": []}}, "messages is set by the renderer"),
        ({"chat_template_kwargs": {"strftime_now": "x"}}, "strftime_now is set by the renderer"),
        ({"chat_template_kwargs": {"a": float("nan")}}, "text, numbers, true, false, lists and tables only"),
        ({"chat_template_date": "yesterday"}, "'yesterday' is not a date; write it like 2026-07-31T09:30:00"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data(**values)
