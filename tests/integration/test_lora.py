"""Runs that train an adapter: stored merged or alone, on float32 or 4-bit weights, stopped and resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spin_components.algorithm.loss import STEP_ZERO_TOLERANCE
from spin_components.errors import ConfigError, InputsChangedError, IntegrityError, ModelError
from spin_components.memory.shape import shape_of_folder
from spin_components.model.loading import load_model
from spin_components.model.lora.files import copy_tokenizer, read_base
from spin_components.model.lora.merging import load_quantized, write_merged
from spin_components.model.stored import model_digest, open_model
from spin_components.runtime.process import STOPPED
from spin_components.runtime.step import Step
from spin_components.settings.run import ModelSettings
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.train_epoch.step import train
from spin_pipeline.runs.export import export_model
from spin_pipeline.runs.published import find_published, forked_values
from support import bounds
from support.playing import begin, hardware, losses, play, play_anywhere, play_iteration, play_scores, val_losses
from support.small import small_settings

LORA = {"r": 4, "alpha": 8.0}
TOKENS = torch.tensor([[17, 5, 200, 33, 90, 41, 7]])


def settings_of(root: Path, model: Path, data: Path, **sections: dict[str, Any]) -> Settings:
    """Two iterations of two epochs of two steps."""
    common: dict[str, dict[str, Any]] = {
        "data": {"max_train_records": 8, "validation_size": 4},
        "spin": {"max_iterations": 2, "max_epochs": 2, "history": 0},
        "generation": {"max_new_tokens": 8},
        "training": {"global_batch_size": 4, "micro_batch_size": 2, "lr": 1e-2},
        "selection": {"save_top_k": 1, "epoch": "last"},
        "lora": LORA,
    }
    for name, table in sections.items():
        common[name] = {**common.get(name, {}), **table}
    return small_settings(root, model, data, **common)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, question_file: Path) -> LocalRun:
    """A run with merged policies; read-only."""
    return play(settings_of(tmp_path_factory.mktemp("merged") / "run", tiny_llama, question_file))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, question_file: Path) -> LocalRun:
    """The same run with policies stored as adapters; read-only."""
    root = tmp_path_factory.mktemp("alone") / "run"
    return play(settings_of(root, tiny_llama, question_file, lora={"export": "adapter"}))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, question_file: Path) -> LocalRun:
    """A run on 4-bit weights; read-only."""
    root = tmp_path_factory.mktemp("quantized") / "run"
    return play(settings_of(root, tiny_llama, question_file, lora={"export": "adapter", "quantize": "nf4"}))


def first_losses(run: LocalRun) -> list[float]:
    """The first loss of each iteration."""
    all_losses = losses(run)
    return all_losses[:: len(all_losses) // 2]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(input_ids=TOKENS, use_cache=False).logits
    return output


def policy(run: LocalRun, t: int) -> str:
    return run.uri_of(f"{layout.epoch(t, 1)}/policy")


def plain(folder: Path) -> Any:
    return load_model(folder, ModelSettings(base="x"))


def test_each_iteration_begins_at_ln_2_and_learns(merged: LocalRun) -> None:
    assert first_losses(merged) == pytest.approx([math.log(2)] * 2, abs=STEP_ZERO_TOLERANCE["float32"])
    assert len(losses(merged)) == 8
    assert all(loss < math.log(2) - 0.01 for loss in (losses(merged)[3], losses(merged)[7]))
    assert len(set(val_losses(merged))) == 3


def test_a_merged_policy_differs_from_the_base_in_adapted_layers_only(merged: LocalRun, tiny_llama: Path) -> None:
    before = load_file(tiny_llama / "model.safetensors")
    after = load_file(merged.path(f"{layout.epoch(1, 1)}/policy/model.safetensors"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    assert not list(merged.path(f"{layout.epoch(1, 1)}/policy").glob("adapter*"))


def test_stored_adapters_give_the_same_run_as_merged_policies(merged: LocalRun, alone: LocalRun) -> None:
    assert losses(alone) == losses(merged)
    assert val_losses(alone) == val_losses(merged)
    folder = open_model(alone, policy(alone, 1), what="the policy")
    expected = load_file(merged.path(f"{layout.epoch(1, 1)}/policy/model.safetensors"))
    written = load_file(folder / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    alone.close()
    assert not folder.exists()


def test_storage_has_the_adapters_and_their_base_models(alone: LocalRun, tiny_llama: Path) -> None:
    assert {path.stat().st_size for path in alone.root.rglob("model.safetensors")} == set()
    bases = [
        read_base(alone.path(f"{layout.epoch(t, 1)}/policy")) for t in range(2)
    ]  # both are kept, although save_top_k = 1
    assert [base.uri for base in bases] == [str(tiny_llama), f"{layout.epoch(0, 1)}/policy"]  # relative to the run
    assert bases[1].sha256 == model_digest(alone, policy(alone, 0))
    weights = f"{layout.epoch(1, 1)}/policy/adapter_model.safetensors"
    # A and B of q, k, v, o, gate, up, down in two layers, each 4 x (inputs + outputs) float32
    assert alone.sizes(weights.rpartition("/")[0])[weights] < 0.4 * (tiny_llama / "model.safetensors").stat().st_size


@pytest.mark.parametrize("storage", ["merged", "alone"])
def test_peft_loads_the_exported_adapter_on_the_base_model(
    storage: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from peft import PeftModel

    run: LocalRun = request.getfixturevalue(storage)
    export_model(run.uri, "1", str(tmp_path / "whole"))
    export_model(run.uri, "1", str(tmp_path / "adapter"), as_adapter=True)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert config["r"] == 2 * LORA["r"]  # of both iterations
    found = PeftModel.from_pretrained(plain(Path(config["base_model_name_or_path"])), str(tmp_path / "adapter"))
    whole = plain(tmp_path / "whole")
    expected = logits(whole)
    torch.testing.assert_close(logits(found), expected, rtol=0.0, atol=bounds.of_logit(whole))
    assert (logits(plain(Path(config["base_model_name_or_path"]))) - expected).abs().max() > 1e-3
    card = (tmp_path / "adapter" / "README.md").read_text("utf-8")
    assert "library_name: peft" in card
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    }


def test_a_fork_from_an_adapter_is_refused_with_advice_to_export_it(alone: LocalRun, merged: LocalRun) -> None:
    with pytest.raises(ConfigError, match=r"is stored as an adapter .* `spin-pipeline export .* --iteration 1`"):
        forked_values(alone, "1")
    assert forked_values(merged, "1")["model"]["base"] == find_published(merged, "1").uri


def test_a_stopped_epoch_resumes_with_the_same_result(
    merged: LocalRun, tiny_llama: Path, question_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path / "run", tiny_llama, question_file, spin={"max_iterations": 1})
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    uri, run = settings.run.uri, LocalRun(tmp_path / "run")
    done = train(uri, 0, 0, reference, scores, hardware(settings))
    asked = iter([False, False, True])  # before the epoch, before its first step, before its second
    with monkeypatch.context() as context:
        context.setattr(Step, "out_of_time", lambda step: next(asked))
        assert train(uri, 0, 1, done, scores, hardware(settings)) == STOPPED
    save = run.read_json(layout.partial(0, 1))["facts"]["key"]
    parts = {"/".join(key.removeprefix(f"{save}/").split("/")[:-1]) for key in run.sizes(save)}
    assert parts == {"adapter", "trainer"}  # saves inside an epoch have no merged weights
    optimizer = load_file(run.path(f"{save}/trainer/optimizer-00000.safetensors"))
    assert len(optimizer) == 2 * 2 * 14
    assert all(".lora_" in name for name in optimizer)
    play_iteration(settings, 0, reference)
    assert losses(run) == losses(merged)[:4]
    weights = f"{layout.epoch(0, 1)}/adapter/adapter_model.safetensors"
    assert run.read(weights) == merged.read(weights)
    assert not list(run.root.rglob("*.part"))


def test_changed_adapter_settings_are_refused_for_an_existing_run(
    tiny_llama: Path, question_file: Path, tmp_path: Path
) -> None:
    begin(settings_of(tmp_path / "run", tiny_llama, question_file))
    with pytest.raises(InputsChangedError, match=r"lora\.alpha was 8\.0, now 4\.0"):
        begin(settings_of(tmp_path / "run", tiny_llama, question_file, lora={"alpha": 4.0}))


def test_an_altered_adapter_is_detected_before_it_is_used(
    tiny_llama: Path, question_file: Path, tmp_path: Path
) -> None:
    settings = settings_of(
        tmp_path / "run", tiny_llama, question_file, spin={"max_iterations": 1}, lora={"export": "adapter"}
    )
    run = play(settings)
    path = run.path(f"{layout.epoch(0, 1)}/policy/adapter_model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors has SHA-256"):
        export_model(run.uri, "0", str(tmp_path / "out"), as_adapter=True)


def test_on_4_bit_weights_reference_and_policy_agree_too(quantized: LocalRun, merged: LocalRun) -> None:
    assert first_losses(quantized) == pytest.approx([math.log(2)] * 2, abs=STEP_ZERO_TOLERANCE["float32"])
    assert losses(quantized)[7] < math.log(2) - 0.01
    assert val_losses(quantized)[0] != val_losses(merged)[0]  # the base is validated as it is trained on
    # of six nats; the error of a 4-bit code, a 15th of the largest weight of its block, mostly cancels in a product
    assert val_losses(quantized)[0] == pytest.approx(val_losses(merged)[0], abs=0.2)


def test_a_policy_on_4_bit_weights_is_exported_as_it_was_trained(quantized: LocalRun, tmp_path: Path) -> None:
    from peft import PeftModel

    settings = Settings.model_validate(quantized.read_json(layout.RUN)["settings"])
    export_model(quantized.uri, "1", str(tmp_path / "whole"))
    export_model(quantized.uri, "1", str(tmp_path / "adapter"), as_adapter=True)
    base = load_quantized(Path(settings.model.base), settings, torch.device("cpu"), "float32")
    found = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    whole = plain(tmp_path / "whole")
    # a product with 4-bit weights is one more chain: codes, scales of blocks, scales of those
    torch.testing.assert_close(logits(found), logits(whole), rtol=0.0, atol=4 * bounds.of_logit(whole))
    assert "quantised to nf4" in (tmp_path / "adapter" / "README.md").read_text("utf-8")


def test_a_base_that_is_stored_in_4_bits_has_the_numbers_of_the_one_that_it_was_made_from(
    tiny_llama: Path, question_file: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    settings = settings_of(tmp_path / "run", base, question_file, lora={"export": "adapter", "quantize": "nf4"})
    made = load_quantized(tiny_llama, settings, torch.device("cpu"), "float32")
    made.save_pretrained(base)
    copy_tokenizer(tiny_llama, base)
    assert "bitsandbytes" in (base / "config.json").read_text("utf-8")
    assert shape_of_folder(base, what="x").num_parameters == shape_of_folder(tiny_llama, what="x").num_parameters
    begin(settings)  # base model checked, scored and sampled from
    assert torch.equal(logits(load_quantized(base, settings, torch.device("cpu"), "float32")), logits(made))
    for name, folder in (("of base", base), ("of origin", tiny_llama)):
        write_merged(folder, [], settings, tmp_path / name)
    assert "quantization_config" not in json.loads((tmp_path / "of base/config.json").read_bytes())
    assert torch.equal(logits(plain(tmp_path / "of base")), logits(plain(tmp_path / "of origin")))
    with pytest.raises(ModelError, match="only an adapter on it can be trained"):
        begin(settings_of(tmp_path / "plain", base, question_file))


@pytest.mark.usefixtures("warm_python")
@pytest.mark.parametrize(("stage", "quantize"), [(3, "none"), (2, "nf4")])
def test_two_ranks_train_an_adapter_like_plain_torch(
    merged: LocalRun,
    quantized: LocalRun,
    tiny_llama: Path,
    question_file: Path,
    tmp_path: Path,
    stage: int,
    quantize: str,
) -> None:
    settings = settings_of(
        tmp_path / "run",
        tiny_llama,
        question_file,
        spin={"max_iterations": 1},
        training={"backend": "deepspeed", "zero_stage": stage},
        hardware={"device": "cpu", "ranks": 2, "threads": 1},
        lora={"quantize": quantize, "export": "adapter"},
    )
    play_anywhere(settings)
    expected = merged if quantize == "none" else quantized
    run = LocalRun(tmp_path / "run")
    assert losses(run) == pytest.approx(losses(expected)[:4], abs=bounds.of_small_run(tiny_llama, num_steps=4))
    part = "adapter" if quantize == "none" else "policy"
    loaded, known = (
        load_file(each.path(f"{layout.epoch(0, 1)}/{name}/adapter_model.safetensors"))
        for each, name in ((run, "policy"), (expected, part))
    )
    begun = {name: torch.zeros_like(tensor) for name, tensor in known.items()}  # B is 0, A small
    bounds.assert_trained_alike(loaded, known, begun, lr=1e-2, num_steps=4)
