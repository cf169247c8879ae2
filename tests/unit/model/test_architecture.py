"""Weights that an architecture expects and the files lack are found without loading any."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from spin_components.errors import ModelError
from spin_components.model.architecture import Architecture, check_architecture
from spin_components.model.loading import load_model
from spin_components.settings.run import ModelSettings

Change = Callable[[str, torch.Tensor], tuple[str, torch.Tensor] | None]


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def checked(folder: Path, warnings: list[str] | None = None) -> Architecture | None:
    warn = [].append if warnings is None else warnings.append
    return check_architecture(folder, ModelSettings(base=str(folder)), what="model.base", warn=warn)


def rewrite(folder: Path, change: Change) -> None:
    weights = load_file(folder / "model.safetensors")
    changed = [each for name, tensor in weights.items() if (each := change(name, tensor))]
    save_file({name: tensor.contiguous() for name, tensor in changed}, folder / "model.safetensors")


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_complete_model_gives_its_limits(folder: Path) -> None:
    warnings: list[str] = []
    assert checked(folder, warnings) == Architecture(num_embeddings=512, num_positions=None)
    assert warnings == []


def test_a_missing_layer_is_named(folder: Path) -> None:
    rewrite(folder, lambda name, tensor: None if ".layers.1." in name else (name, tensor))
    with pytest.raises(ModelError, match=r"9 missing \(model\.layers\.1\.input_layernorm\.weight, .* and 6 more\)"):
        checked(folder)
    with pytest.raises(ModelError, match=r"9 missing"):  # and so does loading
        load_model(folder, ModelSettings(base=str(folder)))


def test_more_and_fewer_layers_than_configured_are_refused(folder: Path) -> None:
    configure(folder, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"9 missing \(model\.layers\.2\.input_layernorm\.weight"):
        checked(folder)
    configure(folder, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"9 unexpected \(model\.layers\.1\.input_layernorm\.weight"):
        checked(folder)


def test_other_shapes_are_named(folder: Path) -> None:
    configure(folder, intermediate_size=96)
    with pytest.raises(
        ModelError, match=r"6 of another shape \(model\.layers\.0\.mlp\.down_proj\.weight: \[64, 128"
    ):
        checked(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_a_wrappers_prefix_is_named(prefix: str, folder: Path) -> None:
    rewrite(folder, lambda name, tensor: (prefix + name, tensor))
    with pytest.raises(ModelError, match=rf"every name begins with the wrapper's prefix '{prefix}'"):
        checked(folder)


def test_an_adapter_that_is_not_merged_is_named(folder: Path) -> None:
    rewrite(folder, lambda name, tensor: (f"base_model.model.{name.replace('q_proj.', 'q_proj.base_layer.')}", tensor))
    with pytest.raises(ModelError, match=r"merge the adapter \(peft: merge_and_unload\)"):
        checked(folder)


def test_what_the_architecture_ties_may_be_missing(folder: Path) -> None:
    rewrite(folder, lambda name, tensor: None if name == "lm_head.weight" else (name, tensor))
    with pytest.raises(ModelError, match=r"1 missing \(lm_head\.weight\)"):
        checked(folder)
    configure(folder, tie_word_embeddings=True)
    assert checked(folder)


def test_what_was_trained_beside_the_model_is_left_out_and_said(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "v_head.summary.weight": torch.zeros(1, 64)}, folder / "model.safetensors")
    warnings: list[str] = []
    assert checked(folder, warnings)
    assert warnings == [
        "model.base: weights that a causal language model does not have are left out: v_head.summary.weight"
    ]


def test_experts_that_loading_fuses_are_no_missing_weights(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    assert checked(tmp_path)
    expert = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    assert expert in load_file(tmp_path / "model.safetensors")
    rewrite(tmp_path, lambda name, tensor: None if ".experts." in name else (name, tensor))
    with pytest.raises(ModelError, match=r"2 missing"):
        checked(tmp_path)


def test_learned_positions_are_a_limit(tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=40,
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        word_embed_proj_dim=16,
    )
    OPTForCausalLM(config).save_pretrained(tmp_path)
    assert checked(tmp_path) == Architecture(num_embeddings=40, num_positions=24)


def test_a_padding_id_outside_the_embedding_is_refused(folder: Path) -> None:
    configure(folder, pad_token_id=600)
    with pytest.raises(ModelError, match=r"the model cannot be loaded: .*adding"):
        checked(folder)
