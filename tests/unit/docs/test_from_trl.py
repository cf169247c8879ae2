"""The page for users of TRL says something about every option of its `DPOConfig`."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

from unit.docs.pages import ROOT


def test_every_option_of_dpo_config_is_on_the_page() -> None:
    spec = importlib.util.find_spec("trl")  # read and not imported: that takes seconds
    assert spec and spec.origin
    tree = ast.parse(Path(spec.origin).with_name("trainer").joinpath("dpo_config.py").read_text("utf-8"))
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    options = {
        node.target.id for node in config.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    named = set(re.findall(r"`(\w+)", (ROOT / "docs/from-trl.md").read_text("utf-8")))
    assert options
    assert options - named == set()
