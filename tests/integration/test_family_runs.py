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
from transformers.pytorch_utils import Conv1D

from spin_components.algorithm.logprobs import PromptAnswer
from spin_components.algorithm.loss import STEP_ZERO_TOLERANCE
from spin_components.data.shards import Pair, Prompt, Score, read_rows
from spin_components.errors import ConfigError, ModelError
from spin_components.model.stored import open_model
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from support import bounds
from support.families import CONFIGS, OTHERS, WRAPPERS, alone, save_family
from support.playing import begin, losses, play, val_losses
from support.small import small_settings

NO_ADAPTER = {"mamba", "mamba2"}
"""Their kernels read the weights of layers that would have an adapter."""


def run_settings(folder: Path, base: Path, questions: Path, **sections: dict[str, Any]) -> Settings:
    """Two steps with two pairs each."""
    return small_settings(
        folder,
        base,
        questions,
        data={"max_train_records": 4, "validation_size": 2, "max_length": 48, "max_prompt_length": 36},
        generation={"max_new_tokens": 6},
        training={"global_batch_size": 2, "micro_batch_size": 2},
        hardware={"device": "cpu", "threads": 1},
        **sections,
    )


@pytest.mark.parametrize("family", [*CONFIGS, *OTHERS])
def test_a_whole_run_has_the_log_probabilities_of_the_stock_forward_pass(
    family: str, tiny_llama: Path, question_file: Path, tmp_path: Path
) -> None:
    base, folder = tmp_path / "base", tmp_path / "run"
    save_family(family, base, tiny_llama)
    run = play(run_settings(folder, base, question_file))
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


@pytest.mark.parametrize("family", [*CONFIGS, *OTHERS])
def test_a_whole_run_with_an_adapter_changes_linear_layers_alone(
    family: str, tiny_llama: Path, question_file: Path, tmp_path: Path
) -> None:
    base, folder = tmp_path / "base", tmp_path / "run"
    save_family(family, base, tiny_llama)
    settings = run_settings(folder, base, question_file, lora={"r": 4, "export": "adapter"})
    if family in NO_ADAPTER:
        with pytest.raises(
            ConfigError, match=r"target_modules = 'all-linear' does not fit Mamba.*'out_proj' is incomp"
        ):
            begin(settings)
        return
    run = play(settings)
    assert losses(run)[0] == pytest.approx(math.log(2), abs=STEP_ZERO_TOLERANCE["float32"])

    policy = _load(open_model(run, run.uri_of(f"{layout.epoch(0, 0)}/policy"), what="the policy"))
    held_out = read_rows(folder / layout.VALIDATION, Prompt)
    nll = -sum(_logprob(policy, prompt.prompt_ids, prompt.actual_ids) for prompt in held_out)
    before, after = val_losses(run)
    num_tokens = sum(len(prompt.actual_ids) for prompt in held_out)
    assert after == pytest.approx(nll / num_tokens, abs=bounds.of_logprob(policy, 1))
    assert after != before

    stock = _load(base).state_dict()
    changed = {name for name, weight in policy.state_dict().items() if not torch.equal(weight, stock[name])}
    linear = {
        f"{name}.weight" for name, layer in policy.named_modules() if isinstance(layer, (torch.nn.Linear, Conv1D))
    }
    assert changed and changed <= linear - {"lm_head.weight", "embed_out.weight"}
    has_experts = any("experts" in name.split(".") and weight.ndim == 3 for name, weight in policy.named_parameters())
    assert has_experts == any(
        "are one tensor a layer: they stay as they are" in message for message in warnings_of(run)
    )


@pytest.mark.parametrize("family", [*WRAPPERS])
def test_the_language_model_of_a_wrapper_is_trained_and_published(
    family: str, tiny_llama: Path, question_file: Path, tmp_path: Path
) -> None:
    base, folder = tmp_path / "base", tmp_path / "run"
    save_family(family, base, tiny_llama)
    run = play(run_settings(folder, base, question_file))
    assert losses(run)[0] == pytest.approx(math.log(2), abs=STEP_ZERO_TOLERANCE["float32"])
    assert any(f"only the language model of this {family} model is trained" in message for message in warnings_of(run))
    before, after = val_losses(run)
    held_out = read_rows(folder / layout.VALIDATION, Prompt)
    num_tokens = sum(len(prompt.actual_ids) for prompt in held_out)
    for path, found in ((base, before), (published := folder / layout.epoch(0, 0) / "policy", after)):
        model = _load(path)
        nll = -sum(_logprob(model, prompt.prompt_ids, prompt.actual_ids) for prompt in held_out)
        assert found == pytest.approx(nll / num_tokens, abs=bounds.of_logprob(model, 1))
    assert after != before
    left_out = _names(base) - _names(published)
    assert left_out == {name for name in _names(base) if name.startswith("model.visual.")} != set()


def warnings_of(run: RunStore) -> list[str]:
    """The warnings of a run's steps."""
    lines = [line for key in run.list("events", "*.jsonl") for line in (run.read(key) or b"").splitlines()]
    return [event["message"] for event in map(json.loads, lines) if event["kind"] == "warning"]


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
