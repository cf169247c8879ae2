"""ZeRO-3 on CPU ranks with weights above DeepSpeed's persistence threshold, which are gathered for every pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spin_components.algorithm.loss import STEP_ZERO_LOSS, STEP_ZERO_TOLERANCE
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from support import bounds
from support.playing import losses, play
from support.wide_llama import make_wide_llama

pytestmark = pytest.mark.usefixtures("warm_python")

MakeSettings = Callable[..., Settings]
TWO_RANKS = {"device": "cpu", "ranks": 2, "threads": 1}
SHORT = {"data": {"max_train_records": 9}, "generation": {"max_new_tokens": 8}, "validation": {"num_samples": 0}}
"""Nine pairs in batches of eight: in the last batch one of the ranks has no pair."""


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Callable[[bool], Path]:
    """Makes a Llama whose embedding and MLP are above the threshold; tied or not."""

    def make(is_tied: bool) -> Path:
        return make_wide_llama(tmp_path_factory.mktemp("models") / "wide", tiny_llama, is_tied=is_tied)

    return make


def trained_weights(run: LocalRun) -> dict[str, torch.Tensor]:
    return load_file(run.path(f"{layout.epoch(0, 0)}/policy/model.safetensors"))


@pytest.mark.parametrize(("is_tied", "packing"), [(True, "on"), (True, "off"), (False, "off")])
def test_gathered_weights_give_the_losses_and_weights_of_plain_torch(
    make_settings: MakeSettings, wide_model: Callable[[bool], Path], tmp_path: Path, is_tied: bool, packing: str
) -> None:
    base = wide_model(is_tied)
    common = {**SHORT, "model": {"base": str(base)}}
    plain = play(make_settings(run={"uri": str(tmp_path / "plain")}, training={"packing": packing}, **common))
    training = {"packing": packing, "backend": "deepspeed", "zero_stage": 3, "micro_batch_size": 2}
    zero = play(make_settings(run={"uri": str(tmp_path / "zero")}, training=training, hardware=TWO_RANKS, **common))
    bound = bounds.of_small_run(base, num_steps=2, num_pairs=1)
    assert losses(zero) == pytest.approx(losses(plain), abs=bound)
    start = load_file(base / "model.safetensors")
    bounds.assert_trained_alike(trained_weights(zero), trained_weights(plain), start, lr=1e-3, num_steps=2)


def test_tied_weights_gathered_in_bf16_keep_the_first_loss_and_are_saved_in_float32(
    make_settings: MakeSettings, wide_model: Callable[[bool], Path]
) -> None:
    training = {"backend": "deepspeed", "zero_stage": 3, "micro_batch_size": 2, "precision": "bf16"}
    # four ranks, so that three of them have no pair of the last batch
    hardware = {**TWO_RANKS, "ranks": 4}
    run = play(make_settings(training=training, hardware=hardware, model={"base": str(wide_model(True))}, **SHORT))
    # reference and policy round alike, so that the first loss is as exact as in float32
    assert losses(run)[0] == pytest.approx(STEP_ZERO_LOSS, abs=STEP_ZERO_TOLERANCE["float32"])
    weights = trained_weights(run)
    assert "lm_head.weight" not in weights
    for name, tensor in weights.items():
        assert tensor.dtype == torch.float32
        assert (tensor != tensor.bfloat16().float()).any(), f"{name} was rounded to bf16"
