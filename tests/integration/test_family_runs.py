"""Tiny models of each family go through a whole run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from spin_components.algorithm.loss import STEP_ZERO_TOLERANCE
from support.families import OTHERS, save_family
from support.playing import losses, play, val_losses
from support.small import small_settings


@pytest.mark.parametrize(
    "family",
    ["gemma3", "gemma3_text", "gemma4_text", "gpt2", "gpt_oss", "llama4_text", "mamba", "mistral", "mixtral"],
)
def test_a_whole_run_from_the_base_to_a_published_policy(
    family: str, tiny_llama: Path, question_file: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    save_family(family, base, tiny_llama)
    settings = small_settings(
        tmp_path / "run",
        base,
        question_file,
        data={"max_train_records": 8, "validation_size": 2},
        generation={"max_new_tokens": 8},
        training={"global_batch_size": 4, "micro_batch_size": 2},
    )
    run = play(settings)
    steps = losses(run)
    assert len(steps) == 2
    assert steps[0] == pytest.approx(math.log(2), abs=STEP_ZERO_TOLERANCE["float32"])
    before, after = val_losses(run)
    assert math.isfinite(after)
    assert after != before
    (published,) = (tmp_path / "run").glob("iterations/0/epochs/0/policy")
    assert json.loads((published / "config.json").read_bytes())["model_type"] == OTHERS[family].model_type
    names = [
        {name for file in folder.glob("*.safetensors") for name in load_file(file)} for folder in (base, published)
    ]
    assert names[0] == names[1]
