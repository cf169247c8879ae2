"""Pages that are made from the code are what it gives now."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from spin_components.data.formats import FORMATS
from unit.docs.pages import EXAMPLES, PAGES, ROOT


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text("utf-8") == PAGES[name](), f"{name} is out of date; run `make docs`"


def test_every_form_of_a_record_has_an_example() -> None:
    for form in FORMATS:
        assert any(set(form.keys) <= set(record) for record in EXAMPLES.values()), form.keys


def test_the_picture_is_drawn_without_anything_from_the_network() -> None:
    text = (ROOT / "docs/images/watch.svg").read_text("utf-8")
    root = ET.fromstring(text)
    assert root.tag.endswith("svg")
    assert "url(" not in text.replace("url(#", "")
    assert not [node for node in root.iter() for name in node.attrib if name.endswith("href")]


def test_the_pages_are_made_without_torch() -> None:
    code = """
import sys
sys.path[:0] = ["tests", "pipeline", "components"]
from unit.docs.pages import PAGES
for make in PAGES.values():
    make()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
