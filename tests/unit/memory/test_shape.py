from __future__ import annotations

import json
from pathlib import Path

import pytest

from spin_components.errors import ConfigError, ModelError
from spin_components.memory.model_config import find_shape
from spin_components.memory.shape import KNOWN, shape_of_config, shape_of_folder
from support.safetensors_files import write_zeros

NEOX = {
    "model_type": "gpt_neox",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "vocab_size": 10,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("name", "number"),  # what the published models have
    [
        ("smollm2-135m-instruct", 134_515_008),
        ("zephyr-7b-sft-full", 7_241_732_096),
        ("Meta-Llama-3-70B-Instruct", 70_553_706_496),
    ],
)
def test_parameters_follow_from_the_widths(name: str, number: int) -> None:
    shape = shape_of_config(KNOWN[name], what=name)
    assert (shape.num_parameters, shape.is_counted) == (number, False)


def test_a_model_without_gates_has_two_mlp_matrices_and_as_many_key_heads_as_query_heads() -> None:
    # a block: 4 x 8 x 8 of attention, 2 x 8 x 32 of MLP, two norms of 8; two embeddings of 10 x 8, a norm
    shape = shape_of_config(NEOX, what="x")
    assert shape.num_parameters == 2 * (256 + 512 + 16) + 160 + 8
    assert (shape.keys, shape.is_gated) == (8, False)


def test_autocast_casts_a_tied_embedding_but_not_an_untied_one() -> None:
    untied = shape_of_config(NEOX, what="x")
    assert untied.num_cast == untied.num_parameters - 80
    tied = shape_of_config({**NEOX, "tie_word_embeddings": True}, what="x")
    assert tied.num_cast == tied.num_parameters == untied.num_parameters - 80


def test_aliases_of_widths_and_text_config_are_read() -> None:
    gpt2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 10}
    shape = shape_of_config({"text_config": gpt2}, what="x")
    assert (shape.num_layers, shape.hidden, shape.inner, shape.queries) == (1, 8, 32, 8)


@pytest.mark.parametrize("lacking", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_a_missing_width_is_named(lacking: str) -> None:
    config = {name: value for name, value in NEOX.items() if name != lacking}
    with pytest.raises(ModelError, match=rf"config\.json has no .*{lacking}"):
        shape_of_config(config, what="model.base")


def test_parameters_are_counted_in_all_headers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NEOX))
    write_zeros(tmp_path / "model-00001-of-00002.safetensors", {"a": [10, 8], "b": [8]})
    write_zeros(tmp_path / "model-00002-of-00002.safetensors", {"c": []})
    shape = shape_of_folder(tmp_path, what="x")
    assert (shape.num_parameters, shape.is_counted) == (80 + 8 + 1, True)


def test_a_safetensors_file_without_a_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NEOX))
    path = tmp_path / "model.safetensors"
    for content in (b"", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.safetensors is not a safetensors file"):
            shape_of_folder(tmp_path, what="x")


def test_a_model_that_cannot_be_read_is_known_by_name_or_refused() -> None:
    shape, origin = find_shape("/absent/zephyr-7b-sft-full", what="model.base")
    assert (shape.hidden, origin) == (4096, "the built-in configuration of zephyr-7b-sft-full")
    with pytest.raises(ModelError, match=r"model\.base = '/absent/x': its shape cannot be read from here"):
        find_shape("/absent/x", what="model.base")
    with pytest.raises(ConfigError, match="no such builtin"):
        find_shape("builtin:x", what="model.base")


def test_of_widths_for_each_layer_the_largest_and_their_mean_count() -> None:
    # a block as above with an MLP of 2 x 8 x 32 and one of 2 x 8 x 16
    shape = shape_of_config({**NEOX, "intermediate_size": [32, 16], "layer_types": ["a", "b"]}, what="x")
    assert shape.inner == 32
    assert shape.num_parameters == 2 * (256 + 16) + 512 + 256 + 160 + 8
    assert shape_of_config({**NEOX, "num_key_value_heads": [1, 2]}, what="x").keys == 8


@pytest.mark.parametrize("text", [None, {}, []])
def test_an_empty_text_config_is_no_configuration(text: object) -> None:
    assert shape_of_config({**NEOX, "text_config": text}, what="x") == shape_of_config(NEOX, what="x")


@pytest.mark.parametrize("value", ["8", [8, "x"], {"a": 1}, True, -1, 8.5])
def test_a_width_that_is_not_a_number_is_named(value: object) -> None:
    with pytest.raises(ModelError, match=r"config\.json has no hidden_size"):
        shape_of_config({**NEOX, "hidden_size": value}, what="x")


def test_what_a_text_config_leaves_out_is_the_default_of_its_architecture() -> None:
    # Gemma 3's wrapper names neither heads nor vocabulary: 8 heads of 256, 4 key heads, and 262,208 tokens by default
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    shape = shape_of_config({"model_type": "gemma3", "text_config": text}, what="x")
    assert (shape.num_layers, shape.hidden, shape.inner) == (34, 2560, 10240)
    assert (shape.queries, shape.keys, shape.vocabulary) == (2048, 1024, 262_208)


def test_weights_that_lie_beside_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NEOX))
    write_zeros(tmp_path / "model.safetensors", {"a": [10, 8]})
    write_zeros(tmp_path / "consolidated.safetensors", {"a": [10, 8]})
    write_zeros(tmp_path / "adapter_model.safetensors", {"b": [10, 8]})
    assert shape_of_folder(tmp_path, what="x").num_parameters == 80


def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json cannot be read: it holds list"):
        shape_of_folder(tmp_path, what="x")
