from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from spin_components.model.windows import short_windows


class _Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.sliding_window, self.window_sizes = config, 30, [40, 2, None]


def test_every_width_is_short_for_a_while_and_nothing_else_changes() -> None:
    values = {"attention_chunk_size": 100, "sliding_window": None, "sliding_window_pattern": 6, "max_window_layers": 20}
    config = SimpleNamespace(**values)
    layer = _Layer(config)
    with pytest.raises(ZeroDivisionError), short_windows(nn.Sequential(layer)):
        assert (layer.sliding_window, layer.window_sizes) == (4, [4, 2, None])
        assert vars(config) == {**values, "attention_chunk_size": 4}
        raise ZeroDivisionError
    assert (layer.sliding_window, layer.window_sizes) == (30, [40, 2, None])
    assert vars(config) == values
