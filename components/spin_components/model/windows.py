"""Attention windows of a model, shortened for a while so that a probe of a few tokens reaches past them.

A sliding window or a chunk may be an argument of the attention function, or be in the mask only. Real windows are
thousands of tokens wide: a short probe within them gives the same result whether or not attention is limited to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROBED_WINDOW = 4
"""Tokens; a probe needs sequences that are longer."""

_WINDOW = re.compile(r"(^|_)window(_size)?s?$|^attention_chunk_size$")


@contextmanager
def short_windows(model: Any) -> Iterator[None]:
    """Shorten every window of a model's configuration and layers to `PROBED_WINDOW`, and restore them at the end."""
    changed: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for attributes in _attributes(model):
            for name, value in list(attributes.items()):
                if _WINDOW.search(name) and (short := _shortened(value)) != value:
                    changed.append((attributes, name, value))
                    attributes[name] = short
        yield
    finally:
        for attributes, name, value in changed:
            attributes[name] = value


def _attributes(model: Any) -> list[dict[str, Any]]:
    """Attributes of the modules and of their configurations, each once."""
    found = {id(vars(module)): vars(module) for module in model.modules()}
    for holder in list(found.values()):
        config = holder.get("config")
        for each in (config, config.get_text_config() if hasattr(config, "get_text_config") else None):
            if hasattr(each, "__dict__"):
                found[id(vars(each))] = vars(each)
    return list(found.values())


def _shortened(value: Any) -> Any:
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    is_width = isinstance(value, int) and not isinstance(value, bool)
    return min(value, PROBED_WINDOW) if is_width and value > 0 else value
