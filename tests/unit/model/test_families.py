from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BartConfig, PhimoeConfig

from spin_components.algorithm.logprobs import PromptAnswer, answer_logprobs
from spin_components.algorithm.packing import Prompted
from spin_components.engine.engine import Sampling
from spin_components.engine.slots import enable_slot_attention
from spin_components.engine.transformers_engine import TransformersEngine
from spin_components.errors import ModelError
from spin_components.model.batch_layout import enable_packed_attention
from spin_components.model.compute import Compute
from spin_components.model.families import check_family
from spin_components.model.loading import load_model
from spin_components.settings.generation import GenerationSettings
from spin_components.settings.run import ModelSettings
from support import bounds
from support.families import CONFIGS, OTHERS, SIZES, alone, model_of, save_family

CPU = torch.device("cpu")
# prompts and answers on either side of the windows' 30 tokens
GROUPS = [
    Prompted([*range(5, 25)], ([*range(30, 50)], [*range(40, 47)])),
    Prompted([9, 8, 7], ([*range(3, 43)], [2])),
]
LONGEST = 40
"""Tokens of the longest answer in `GROUPS`."""
PACKED = {
    "gemma3",
    "gemma3_text",
    "gemma3n_text",
    "gemma4",
    "gemma4_moe",
    "gemma4_text",
    "gpt2",
    "gpt_oss",
    "mistral",
    "mixtral",
    "olmoe",
    "opt",
    "qwen3",
    "qwen3_moe",
}
PADDED = {"llama4_text", "mamba", "mamba2", "qwen2_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"}
"""Windows that live in the mask alone, states that are carried from token to token."""

Loaded = Callable[[str], Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save_family(family, made[family])
            for path in tiny_llama.glob("tokenizer*"):
                (made[family] / path.name).write_bytes(path.read_bytes())
        return made[family]

    return folder


@pytest.fixture
def loaded(folders: Callable[[str], Path]) -> Loaded:
    return lambda family: load_model(folders(family), ModelSettings(base="unused"))


def stock(model: Any) -> torch.Tensor:
    """Log-probabilities of the answers of `GROUPS`, each by a forward pass of its own."""
    with torch.no_grad():
        return torch.stack([alone(model, PromptAnswer(prompt, each)) for prompt, both in GROUPS for each in both])


def reasons(model: Any) -> tuple[str, str]:
    """Why a model takes no slots and does not pack; it packs afterwards, if it can."""
    slots = enable_slot_attention(model, CPU)
    model.set_attn_implementation("eager")
    return slots, enable_packed_attention(model, Compute(CPU, "float32"))


@pytest.mark.parametrize("family", OTHERS)
def test_log_probabilities_are_those_of_the_stock_forward_pass(family: str, loaded: Loaded) -> None:
    expected = stock(loaded(family).eval())
    model = loaded(family).train()  # as the policy: without dropout or noise, it gives what the reference gives
    check_family(model)
    for packs in (False, True):
        reason = enable_packed_attention(model, Compute(CPU, "float32")) if packs else ""
        assert bool(reason) == (packs and family in PADDED), reason
        found = answer_logprobs(model, GROUPS, CPU).detach()
        # a window that is not kept costs nats (see below)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=bounds.of_logprob(model, LONGEST))
    assert {*OTHERS} == PACKED | PADDED


@pytest.mark.parametrize("family", OTHERS)
def test_greedy_answers_are_those_of_the_stock_forward_pass(
    family: str, folders: Callable[[str], Path], loaded: Loaded
) -> None:
    sampling = Sampling(GenerationSettings(temperature=0.0, max_new_tokens=8, batch_size=2), [2], 0)
    engine = TransformersEngine(folders(family), ModelSettings(base="unused"), sampling, Compute(CPU, "float32"))
    prompts = [[*range(3, 43)], [9, 8, 7], [*range(20, 48)]]
    answers = dict(engine.generate(prompts, [8] * 3))
    engine.close()
    model = loaded(family).eval()
    for index, prompt in enumerate(prompts):
        ids = list(prompt)
        for token in answers[index].token_ids:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert float(logits.max() - logits[token]) <= 2 * bounds.of_logit(model)  # the likeliest, but for ties
            ids.append(token)


@pytest.mark.parametrize("family", ["llama4_text", "qwen2_moe"])
def test_a_window_in_the_mask_alone_is_seen_by_a_short_probe(family: str, loaded: Loaded) -> None:
    model = loaded(family).eval()
    assert "differ" in enable_packed_attention(model, Compute(CPU, "float32"))
    assert "differ" in enable_slot_attention(model, CPU)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", ["gemma3_text", "mistral"])
def test_a_window_that_attention_is_told_of_is_kept(family: str, loaded: Loaded) -> None:
    model = loaded(family).eval()
    expected = stock(model)
    assert reasons(model) == ("", "")
    found = answer_logprobs(model, GROUPS, CPU).detach()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=bounds.of_logprob(model, LONGEST))
    for config in {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }.values():
        config.sliding_window = 64
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 64
    assert (answer_logprobs(model, GROUPS, CPU) - expected).abs().max() > 0.1


@pytest.mark.parametrize("family", CONFIGS)
def test_the_first_families_still_pack_and_take_slots(family: str) -> None:
    model = copy.deepcopy(model_of(family))
    assert reasons(model) == ("", "")


def test_what_a_family_lacks_is_named() -> None:
    configs = {
        "BartForCausalLM.*'bart'.*takes no position_ids": BartConfig(
            vocab_size=64, d_model=32, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64
        ),
        "PhimoeForCausalLM.*'phimoe'.*draws experts at random": PhimoeConfig(**SIZES, pad_token_id=0),
    }
    for message, config in configs.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        with pytest.raises(ModelError, match=message):
            check_family(model)


@pytest.mark.parametrize("family", OTHERS)
def test_a_family_is_accepted_without_its_weights(family: str) -> None:
    with torch.device("meta"):
        check_family(AutoModelForCausalLM.from_config(copy.deepcopy(OTHERS[family])))
