"""Model folders that cannot be used are refused from their files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from spin_components.errors import ModelError
from spin_components.model.folder import check_model_folder, copy_companions, generation_eos, load_tokenizer
from spin_components.settings.run import ModelSettings
from support.safetensors_files import write_zeros

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_model_folder_gives_its_configuration(folder: Path) -> None:
    configure(folder, quantization_config=None, text_config=None)
    assert check_model_folder(folder, what="model.base")["model_type"] == "llama"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "config.json says fp8"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "config.json says gptq"),
        ({"quantization_config": {"load_in_4bit": True}}, "config.json says quantization_config"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "config.json says awq"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "config.json says compressed-tensors"),
    ],
)
def test_a_quantized_model_is_refused_by_its_configuration(changes: dict[str, Any], found: str, folder: Path) -> None:
    configure(folder, **changes)
    with pytest.raises(ModelError, match=rf"is quantized \({found}\).*name the unquantized model.*lora\.quantize"):
        check_model_folder(folder, what="model.base")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("model.q_proj.weight", "F8_E4M3"), ("model.q_proj.weight", "U8"), ("model.q_proj.qweight", "I32")],
)
def test_a_quantized_model_is_refused_by_the_types_of_its_weights(name: str, dtype: str, folder: Path) -> None:
    write_zeros(folder / "model.safetensors", {name: [2, 2]}, dtype=dtype)
    with pytest.raises(ModelError, match=rf"is quantized \({name} is stored as {dtype}\)"):
        check_model_folder(folder, what="model.base")


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def test_a_model_stored_in_4_bits_is_the_base_of_an_adapter_alone(folder: Path) -> None:
    write_zeros(folder / "model.safetensors", {"model.q_proj.weight": [8, 1]}, dtype="U8")
    configure(folder, quantization_config=NF4)
    with pytest.raises(
        ModelError, match=r"stored in 4 bits by bitsandbytes \(nf4\).*set lora\.r, lora\.quantize = 'nf4'"
    ):
        check_model_folder(folder, what="model.base")
    assert check_model_folder(folder, what="model.base", quantize="nf4")["quantization_config"] == NF4


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"bnb_4bit_quant_type": "fp4"}, "bitsandbytes, fp4"), ({"load_in_4bit": False}, "bitsandbytes, 8 bits")],
)
def test_other_numbers_of_bitsandbytes_are_refused_with_an_adapter_too(
    changes: dict[str, Any], found: str, folder: Path
) -> None:
    configure(folder, quantization_config={**NF4, **changes})
    with pytest.raises(
        ModelError, match=f"is quantized .config.json says {found}, and 4 bits of type nf4 are read alone"
    ):
        check_model_folder(folder, what="model.base", quantize="nf4")


def test_a_mask_of_bytes_is_no_quantized_weight(folder: Path) -> None:
    write_zeros(folder / "model.safetensors", {"h.0.attn.bias": [1, 1, 4, 4]}, dtype="U8")
    check_model_folder(folder, what="model.base")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pointer_in_place_of_a_file_is_refused(name: str, folder: Path) -> None:
    (folder / name).write_text(POINTER)
    with pytest.raises(ModelError, match=rf"{name} is a Git LFS pointer"):
        check_model_folder(folder, what="model.base")


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_folder_with_an_adapter_alone_says_so(lost: str, folder: Path) -> None:
    (folder / lost).unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    write_zeros(folder / "adapter_model.safetensors", {"a": [1]})
    (folder / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"holds an adapter made on 'org/base' and no model; merge it"):
        check_model_folder(folder, what="model.base")


def test_weights_under_another_name_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(ModelError, match=r"expected model\.safetensors, .* \(there is consolidated\.safetensors\)"):
        check_model_folder(folder, what="model.base")


def test_a_configuration_that_is_no_object_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json holds list, expected a JSON object"):
        check_model_folder(folder, what="model.base")
    (folder / "generation_config.json").write_text("[]")
    assert generation_eos(folder, {"eos_token_id": 2}) == 2


def test_a_tokenizer_of_a_newer_release_is_refused_in_one_line(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    tokenizer["model"] = {"type": "NotYetKnown", "vocab": {}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"cannot be loaded by tokenizers .*newer release") as caught:
        load_tokenizer(folder, ModelSettings(base=str(folder)))
    assert "\n" not in str(caught.value)


def test_what_lies_beside_is_not_copied(folder: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "optimizer.pt", "original/params.json", "extra/tool.jinja"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    configure(folder, torch_dtype="bfloat16")
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_companions(folder, copy)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    copied = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert names - copied == {"adapter_config.json", "optimizer.pt", "original/params.json", "model.safetensors"}
    config = json.loads((copy / "config.json").read_bytes())
    assert config["dtype"] == "float32"
    assert "torch_dtype" not in config
