from __future__ import annotations

from typing import Any

import pytest

from spin_components.errors import ConfigError
from spin_components.prepare.compiled_shape import check_shape
from support.small import small_settings

COMPILED = {"max_iterations": 1, "max_epochs": [1], "shards": 1, "nodes": 1, "evaluates": True}
JUDGED = {"evaluation": {"judge_url": "http://j/v1", "judge_model": "j"}, "validation": {"num_samples": 8}}


@pytest.mark.parametrize("measure", ["judge", "nll"])
def test_verdicts_wait_for_the_evaluation_only_where_the_pipeline_was_compiled_so(measure: str) -> None:
    tables: dict[str, Any] = {**JUDGED, "selection": {"measure": measure}}
    settings = small_settings("u", "m", "d", **tables)
    waits = measure == "judge"
    check_shape(settings, {**COMPILED, **({"decides": True} if waits else {})})
    how = "do not wait" if waits else "wait"
    with pytest.raises(ConfigError, match=f"measure = '{measure}', but this pipeline was compiled .* that {how} for"):
        check_shape(settings, {**COMPILED, "decides": not waits})
