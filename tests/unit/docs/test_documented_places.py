"""Files and names that the docs send a reader to are there, and commands are commands."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from spin_pipeline.cli import _parser
from spin_pipeline.commands.options import settings_of
from unit.docs.pages import ROOT

GUIDES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
FOLDERS = "pipeline|components|docker|manifests|docs|tests"


def tree_paths(text: str) -> list[str]:
    """Paths in a page's tree of files: a folder's are indented below it, and two spaces end a name."""
    (tree,) = (block for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if "dag.py" in block)
    found, parents = [], {0: ""}
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        if indent > 8:
            continue  # the rest of what a line above says
        for name in itertools.takewhile(re.compile(r"[\w./-]+(/|\.py)").fullmatch, re.split("  +", line.strip())):
            found.append(parents[indent] + name)
            parents[indent + 4] = parents[indent] + name
    return found


def test_the_tree_of_the_architecture_page_is_there() -> None:
    paths = tree_paths((ROOT / "docs/architecture.md").read_text("utf-8"))
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_order_of_imports_is_the_one_that_is_checked() -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        for package in contract.get("containers", []):
            layers = [layer.replace(" | ", ", ") for layer in contract["layers"]]
            written = " > ".join("the steps" if layer.startswith("prepare, ") else layer for layer in layers)
            assert re.search(rf"^{package} +{re.escape(written)}$", text, re.MULTILINE), written


@pytest.mark.parametrize("page", GUIDES)
def test_files_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./-]*[\w/])`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_names_that_the_walk_sends_to_are_in_their_files() -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    places = re.findall(r"`([\w/]+\.py)`: `(\w+)`", text)
    assert len(places) > 8
    for path, name in places:
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text("utf-8")), f"{path}: {name}"


@pytest.mark.parametrize("page", GUIDES)
def test_commands_of_a_page_are_commands(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs/tutorial.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.toml").write_text("\n".join(toml), "utf-8")
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if "spin-pipeline " in line else []
        if words and Path(words[0]).name == "spin-pipeline":
            options = _parser().parse_args(words[1:])
            if "config" in options:
                settings_of(options)
