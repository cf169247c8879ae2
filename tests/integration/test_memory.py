"""The estimated peak memory of a step, compared with the kernel's count for a separate process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.memory import FAMILIES, Case, estimate_of, family_case, in_own_process, make_model
from spin_components.memory.fit import REFUSED


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with weights, activations and logits that are each larger than the variation of the libraries."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("middling")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


SHORT = Case("middling", "train-epoch", 4, max_length=96, max_prompt_length=32, max_new_tokens=64)


@pytest.mark.parametrize(
    "case",
    [
        SHORT,
        replace(SHORT, gradient_checkpointing=True, packing="off", optimizer="rmsprop"),
        replace(SHORT, lora_r=8),
    ],
    ids=str,
)
def test_a_steps_peak_is_estimated_within_20_percent(middling: Path, case: Case) -> None:
    measured = in_own_process(case, middling)
    estimated = sum(estimate_of(case, middling).values())
    assert 0.8 < estimated / max(measured.values()) < 1.2, (measured, estimate_of(case, middling))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"mamba", "opt"}))
def test_a_familys_peak_is_estimated_so_that_what_fits_is_not_refused(family: str, tmp_path: Path) -> None:
    """An estimate may exceed the memory by `REFUSED` before a step is refused, so none may exceed its peak by more.

    From below 20 %: libraries keep 520 to 670 MiB with a loaded model where 573 are estimated, and the heap's holes
    are of that order, together a fifth of peaks of 1 GiB. State counted once too few, or experts counted as one, are
    a quarter and more.
    """
    folder = tmp_path / family
    make_model(family, folder)
    case = family_case(family)
    measured, estimated = in_own_process(case, folder), estimate_of(case, folder)
    assert 0.8 < sum(estimated.values()) / max(measured.values()) < REFUSED, (measured, estimated)
    assert max(measured.values()) > 1.6 * measured["load"], "the model is too small to tell anything"
