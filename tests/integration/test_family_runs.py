"""Tiny models of each family go through a whole run, whose numbers are those of transformers' own forward pass."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from spin_components.algorithm.logprobs import PromptAnswer
from spin_components.algorithm.loss import STEP_ZERO_TOLERANCE
from spin_components.data.shards import Pair, Prompt, Score, read_rows
from spin_components.errors import ModelError
from spin_components.store import layout
from support import bounds
from support.families import CONFIGS, OTHERS, alone, save_family
from support.playing import losses, play, val_losses
from support.small import small_settings


@pytest.mark.parametrize("family", [*CONFIGS, *OTHERS])
def test_a_whole_run_has_the_log_probabilities_of_the_stock_forward_pass(
    family: str, tiny_llama: Path, question_file: Path, tmp_path: Path
) -> None:
    base, folder = tmp_path / "base", tmp_path / "run"
    save_family(family, base, tiny_llama)
    settings = small_settings(
        folder,
        base,
        question_file,
        data={"max_train_records": 4, "validation_size": 2, "max_length": 48, "max_prompt_length": 36},
        generation={"max_new_tokens": 6},
        training={"global_batch_size": 2, "micro_batch_size": 2},
        hardware={"device": "cpu", "threads": 1},
    )
    run = play(settings)
    steps = losses(run)
    assert len(steps) == 2
    assert steps[0] == pytest.approx(math.log(2), abs=STEP_ZERO_TOLERANCE["float32"])

    stock = _load(base)
    pairs = {pair.key: pair for pair in read_rows(folder / layout.generations(0, 0), Pair)}
    scores = read_rows(folder / layout.ref_logprobs(0, 0), Score)
    assert len(scores) == len(pairs) == 4
    for score in scores:
        pair = pairs[score.key]
        for answer, found in ((pair.actual_ids, score.ref_actual), (pair.generated_ids, score.ref_generated)):
            assert found == pytest.approx(
                _logprob(stock, pair.prompt_ids, answer), abs=bounds.of_logprob(stock, len(answer))
            )
        assert pair.sampled_logprob == pytest.approx(
            score.ref_generated, abs=bounds.of_logprob(stock, len(pair.generated_ids))
        )

    published = folder / layout.epoch(0, 0) / "policy"
    policy = _load(published)
    held_out = read_rows(folder / layout.VALIDATION, Prompt)
    nll = -sum(_logprob(policy, prompt.prompt_ids, prompt.actual_ids) for prompt in held_out)
    before, after = val_losses(run)
    num_tokens = sum(len(prompt.actual_ids) for prompt in held_out)
    assert after == pytest.approx(nll / num_tokens, abs=bounds.of_logprob(policy, 1))
    assert after != before
    assert (
        json.loads((published / "config.json").read_bytes())["model_type"] == {**CONFIGS, **OTHERS}[family].model_type
    )
    assert _names(published) == _names(base)


def test_a_wrapper_is_refused_by_the_library_that_it_lacks(
    tiny_llama: Path, question_file: Path, tmp_path: Path
) -> None:
    """Gemma 3n's vision tower is timm's, which this project does not install."""
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    tower = {"model_type": "gemma3n_vision"}
    config = {"model_type": "gemma3n", "text_config": OTHERS["gemma3n_text"].to_dict(), "vision_config": tower}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=r"model\.base = .*cannot be loaded: .*requires the timm library.*pip install timm"
    ):
        play(small_settings(tmp_path / "run", base, question_file))


def _load(folder: Path) -> Any:
    """A model without this project's code; eager, because sdpa leaves out Gemma 2's soft-capping."""
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(found.values()), found
    return model.eval()


def _logprob(model: Any, prompt_ids: list[int], answer_ids: list[int]) -> float:
    with torch.no_grad():
        return float(alone(model, PromptAnswer(prompt_ids, answer_ids)))


def _names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names
