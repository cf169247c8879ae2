"""Messages that the docs explain are messages of the code."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from spin_components.errors import SpinError
from unit.docs.pages import ROOT

PAGES = ("troubleshooting", "tuning")


@cache
def texts() -> list[str]:
    """Every string of the product, `…` in place of what is filled in."""
    found = []
    for path in sorted([*ROOT.glob("components/**/*.py"), *ROOT.glob("pipeline/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(_part(value) for value in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def _part(value: ast.expr) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else "…"


def quoted(page: str) -> list[str]:
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    return re.findall(r"^> (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_every_message_that_a_page_explains_is_one(page: str) -> None:
    messages = quoted(page)
    assert messages
    assert [message for message in messages if not _is_one(message)] == []


def _is_one(message: str) -> bool:
    """Whether some string of the product has all parts of a message, in their order."""
    parts = message.split("…")
    pattern, longest = re.compile(".*?".join(map(re.escape, parts))), max(parts, key=len)
    return any(pattern.search(text) for text in texts() if longest in text)


def test_the_table_of_kinds_is_the_tree_of_errors() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    table = {name: int(code) for name, code in re.findall(r"^\| `(\w+)` \| .* \| (\d) \|$", text, re.MULTILINE)}
    kinds = {kind.__name__: kind.exit_code for kind in SpinError.__subclasses__()}
    assert table == kinds
