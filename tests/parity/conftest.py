from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from parity.second_iteration import SecondIteration, begin_second_iteration
from support.small import small_settings


@pytest.fixture(scope="session")
def second_iteration(
    tiny_llama: Path, question_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> SecondIteration:
    """A shared run: tests repeat the steps whose output they need."""
    return begin_second_iteration(
        partial(small_settings, tmp_path_factory.mktemp("second") / "run", tiny_llama, question_file)
    )
