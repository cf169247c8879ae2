from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spin_components.errors import ModelError
from spin_components.store.model_files import (
    INDEX,
    count_parameters,
    link_model,
    model_names,
    read_header,
    read_headers,
    weight_files,
)
from support.safetensors_files import write_zeros

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_sharded(folder: Path) -> None:
    write_zeros(folder / SHARDS[0], {"a": [2, 3]})
    write_zeros(folder / SHARDS[1], {"b": [4]})
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}))


def test_the_files_of_the_index_are_loaded_unless_there_is_one_file(tmp_path: Path) -> None:
    assert weight_files(tmp_path, {}) == []
    write_sharded(tmp_path)
    write_zeros(tmp_path / "consolidated.safetensors", {"x": [9]})
    assert [path.name for path in weight_files(tmp_path, {})] == [*SHARDS]
    named = weight_files(tmp_path, {"transformers_weights": "consolidated.safetensors"})
    assert [path.name for path in named] == ["consolidated.safetensors"]
    write_zeros(tmp_path / "model.safetensors", {"a": [2, 3]})
    assert [path.name for path in weight_files(tmp_path, {})] == ["model.safetensors"]


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(ModelError, match=rf"names 2 files, of which {SHARDS[1]} are not in the folder"):
        weight_files(tmp_path, {})


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ModelError, match=r"is not an index of safetensors files"):
        weight_files(tmp_path, {})


def test_a_pointer_and_a_file_that_was_cut_off_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match=r"is a Git LFS pointer.*git lfs pull"):
        read_header(path)
    write_zeros(path, {"a": [2, 3]})
    size = path.stat().st_size
    assert read_header(path)["a"].shape == (2, 3)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=rf"has {size - 1} bytes, its header says {size}"):
        read_header(path)


def test_a_tied_output_layer_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_zeros(path, {"model.embed_tokens.weight": [10, 4], "norm": [4], "lm_head.weight": [10, 4]})
    weights = read_headers([path])
    assert count_parameters(weights, is_tied=True) == 44  # 10 x 4 + 4
    assert count_parameters(weights, is_tied=False) == 84
    del weights["model.embed_tokens.weight"]
    assert count_parameters(weights, is_tied=True) == 44  # stored under the other name alone


BESIDE = (
    *("consolidated.safetensors", "adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin"),
    *("pytorch_model.bin.index.json", "optimizer.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json"),
    *("model.q4.gguf", "original/params.json", "original/consolidated.00.pth", "checkpoint-10/model.safetensors"),
    *("checkpoint-10/config.json", "onnx/model.onnx", "runs/events.out.tfevents.1"),
)
OWN = (
    *("LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt"),
    *("modeling_own.py", "tokenizer.json", "tokenizer.model", "optimizer.py"),
    *("additional_chat_templates/tool.jinja", "own/blocks.py"),
)


def test_what_lies_beside_a_model_is_left_out(tmp_path: Path) -> None:
    folder, view = tmp_path / "model", tmp_path / "view"
    for name in (*OWN, *BESIDE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    write_sharded(folder)
    expected = sorted([*OWN, *SHARDS, INDEX])
    assert model_names(folder, {}) == expected
    assert link_model(folder, {}, view) == view
    assert sorted(str(path.relative_to(view)) for path in view.rglob("*") if path.is_file()) == expected
    assert (view / "own/blocks.py").read_text() == "own/blocks.py"


def test_a_folder_with_nothing_beside_is_used_as_it_is(tmp_path: Path) -> None:
    write_zeros(tmp_path / "model.safetensors", {"a": [1]})
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/pytorch_model.bin").write_text("hidden files are nobody's")
    config: dict[str, Any] = {}
    assert link_model(tmp_path, config, tmp_path / "view") == tmp_path
