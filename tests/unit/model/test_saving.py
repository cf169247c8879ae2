"""Generation settings that transformers refuses never keep a trained model from being saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from spin_components.model.loading import load_model, save_policy
from spin_components.settings.run import ModelSettings


@pytest.mark.parametrize(
    "content",
    [
        '{"temperature": 0.9, "top_p": 0.6}',
        '{"do_sample": false, "top_k": 5, "eos_token_id": 1}',
        '{"max_new_tokens": -3}',
        '{"pad_token_id": -1, "eos_token_id": [1, 2]}',
        "not JSON",
        "[]",
    ],
)
def test_a_refused_file_is_published_as_it_came(content: str, tiny_llama: Path, tmp_path: Path) -> None:
    base, policy = tmp_path / "base", tmp_path / "policy"
    shutil.copytree(tiny_llama, base)
    (base / "generation_config.json").write_text(content)
    settings = ModelSettings(base=str(base))
    model = load_model(base, settings)
    save_policy(model, model.state_dict(), base, policy)
    assert (policy / "generation_config.json").read_text() == content
    again = load_model(policy, settings).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_sampling_settings_in_the_configuration_itself_are_no_obstacle(tiny_llama: Path, tmp_path: Path) -> None:
    base, policy = tmp_path / "base", tmp_path / "policy"
    shutil.copytree(tiny_llama, base)
    (base / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((base / "config.json").read_bytes())
    (base / "config.json").write_text(json.dumps({**config, "temperature": 0.5, "top_p": 0.7}))
    model = load_model(base, ModelSettings(base=str(base)))
    save_policy(model, model.state_dict(), base, policy)
    assert (policy / "model.safetensors").is_file()
