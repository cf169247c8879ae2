"""Settings with trackers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from spin_components.settings.settings import Settings


@pytest.fixture
def make_tracked() -> Callable[..., Settings]:
    """Function that creates settings with a `[tracking]` section."""

    def make(**tracking: Any) -> Settings:
        values = {"model": {"base": "m"}, "data": {"train": "d"}, "run": {"name": "tiny"}, "tracking": tracking}
        return Settings.model_validate(values)

    return make
