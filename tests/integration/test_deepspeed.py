"""Real DeepSpeed with two CPU ranks: the same losses as plain torch, and saves that both backends resume."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from integration.uneven_ranks import LR, OF_RANK, make_model
from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.data.shards import PairReward, read_rows
from spin_components.errors import NonFiniteError
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.store.model_files import count_parameters, read_headers
from spin_components.train_epoch.step import train
from spin_components.training.parts import Parts
from spin_components.validate.step import validate
from support import bounds
from support.playing import begin, hardware, losses, play, play_scores
from support.s3_server import free_port
from support.small import small_settings

pytestmark = pytest.mark.usefixtures("warm_python")

MakeSettings = Callable[..., Settings]
TWO_RANKS = {"device": "cpu", "ranks": 2, "threads": 1}


def val_losses_inside(run: LocalRun) -> list[float]:
    """val_loss of the validations inside epochs, by step."""
    paths = sorted(run.root.glob("iterations/*/epochs/*/metrics.json"))
    rows = [row for path in paths for row in json.loads(path.read_text("utf-8"))["steps"]]
    return [row["val_loss"] for row in rows if "val_loss" in row]


def optimizer_state(run: LocalRun, epoch: int) -> dict[str, torch.Tensor]:
    """Whole tensors by KIND/PARAMETER."""
    parts = Parts(sorted(run.path(f"{layout.epoch(0, epoch)}/trainer").rglob("optimizer-*.safetensors")))
    return {name: parts.whole(name) for name in parts}


def assert_weights_alike(base: Path, found: LocalRun, expected: LocalRun, epoch: int) -> None:
    """Of the policies after an epoch, of three steps each."""
    paths = [run.path(f"{layout.epoch(0, epoch)}/policy/model.safetensors") for run in (found, expected)]
    trained, reference = (load_file(path) for path in paths)
    start = load_file(base / "model.safetensors")
    bounds.assert_trained_alike(trained, reference, start, lr=1e-3, num_steps=3 * (1 + epoch))


# two epochs, so that the optimizer's state is carried from one process to the next; 20 pairs in batches of 8 leave a
# last batch of 4, where ranks get padding
TWO_EPOCHS = {"spin": {"max_epochs": 2}, "validation": {"val_check_interval": 2, "batch_size": 3}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, question_file: Path) -> LocalRun:
    """A run of two epochs with plain torch, for all stages; not to be written to."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    return play(small_settings(folder, tiny_llama, question_file, **TWO_EPOCHS))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_give_the_losses_of_plain_torch(
    make_settings: MakeSettings, plain: LocalRun, tiny_llama: Path, stage: int
) -> None:
    training = {"backend": "deepspeed", "zero_stage": stage, "micro_batch_size": 2}
    zero = play(make_settings(training=training, hardware=TWO_RANKS, **TWO_EPOCHS))
    trained = read_manifest(zero, layout.epoch_manifest(0, 1))
    assert (trained.facts["backend"], trained.facts["zero_stage"]) == ("deepspeed", stage)
    assert (trained.machine["ranks"], trained.machine["threads"]) == (2, 1)
    assert losses(zero) == pytest.approx(losses(plain), abs=bounds.of_small_run(tiny_llama, num_steps=6))
    # a mean over tokens, not beta times a sum
    bound = bounds.of_small_run(tiny_llama, num_steps=6)
    assert val_losses_inside(zero) == pytest.approx(val_losses_inside(plain), abs=bound)
    assert_weights_alike(tiny_llama, zero, plain, epoch=1)
    rewards = [read_rows(run.path(layout.rewards(0, 1)), PairReward) for run in (plain, zero)]
    assert [(row.index, row.step) for row in rewards[0]] == [(row.index, row.step) for row in rewards[1]]
    for kind in ("reward_actual", "reward_generated"):
        expected, found = ([getattr(row, kind) for row in rows] for rows in rewards)
        assert found == pytest.approx(expected, abs=bounds.of_small_run(tiny_llama, num_steps=6, num_pairs=1))


@pytest.mark.parametrize(("stage", "max_epochs"), [(2, 1), (3, 2)])
def test_an_offloaded_optimizer_gives_the_losses_and_the_state_of_plain_torch(
    make_settings: MakeSettings, tiny_llama: Path, tmp_path: Path, stage: int, max_epochs: int
) -> None:
    common = {"spin": {"max_epochs": max_epochs, "reset_optimizer": False}}  # so that the state is kept
    plain = play(make_settings(run={"uri": str(tmp_path / "plain")}, **common))
    training = {"backend": "deepspeed", "zero_stage": stage, "offload_optimizer": True, "micro_batch_size": 2}
    zero = play(make_settings(run={"uri": str(tmp_path / "zero")}, training=training, hardware=TWO_RANKS, **common))
    assert losses(zero) == pytest.approx(losses(plain), abs=bounds.of_small_run(tiny_llama, 3 * max_epochs))
    expected, found = (optimizer_state(run, max_epochs - 1) for run in (plain, zero))
    assert found.keys() == expected.keys() != set()
    for kind in {name.partition("/")[0] for name in expected}:
        power = 2 if kind in ("square_avg", "exp_avg_sq") else 1  # of the gradients
        names = [name for name in expected if name.partition("/")[0] == kind]
        apart, whole = (
            torch.cat([tensor.flatten() for tensor in tensors]).norm()
            for tensors in ([found[name] - expected[name] for name in names], [expected[name] for name in names])
        )
        assert apart < power * bounds.of_gradient_norm(tiny_llama, 3 * max_epochs) * whole


@pytest.mark.parametrize("packing", ["on", "off"])
def test_a_policy_loaded_in_parts_gives_the_losses_and_weights_of_plain_torch(
    make_settings: MakeSettings, tiny_llama: Path, tmp_path: Path, packing: str
) -> None:
    layout_of_batches = {"packing": packing}
    plain = play(make_settings(run={"uri": str(tmp_path / "plain")}, training=layout_of_batches))
    training = {**layout_of_batches, "backend": "deepspeed", "zero_stage": 3, "micro_batch_size": 2}
    zero = play(make_settings(run={"uri": str(tmp_path / "zero")}, training=training, hardware=TWO_RANKS))
    assert losses(zero) == pytest.approx(losses(plain), abs=bounds.of_small_run(tiny_llama, num_steps=3))
    assert_weights_alike(tiny_llama, zero, plain, epoch=0)


_LOADING = """
import os, sys
from pathlib import Path
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", DS_ACCELERATOR="cpu")
import torch, deepspeed
from spin_components.model.compute import Compute
from spin_components.settings.settings import Settings
from spin_components.training.deepspeed_backend import load_for_ranks
deepspeed.init_distributed(dist_backend="gloo")
for packing in ("off", "on"):
    training = {"backend": "deepspeed", "zero_stage": 3, "packing": packing, "global_batch_size": 1}
    settings = Settings.model_validate({"model": {"base": sys.argv[1]}, "data": {"train": "-"}, "training": training})
    model = load_for_ranks(Path(sys.argv[1]), settings, Compute(torch.device("cpu"), "float32"))
    held = [parameter.numel() for parameter in model.parameters()]
    print("HELD", sum(held), sum(getattr(parameter, "ds_numel", 0) for parameter in model.parameters()))
torch.distributed.destroy_process_group()
"""


def test_weights_are_partitioned_while_loading(tiny_llama: Path) -> None:
    environment = {**os.environ, "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", _LOADING, str(tiny_llama)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    number = count_parameters(read_headers([tiny_llama / "model.safetensors"]), is_tied=False)
    assert re.findall(r"HELD (\d+) (\d+)", output) == [("0", str(number))] * 2  # padded and packed


def test_deepspeed_goes_on_from_a_save_of_plain_torch(
    make_settings: MakeSettings, tiny_llama: Path, tmp_path: Path
) -> None:
    spin = {"max_epochs": 2}
    settings = make_settings(run={"uri": str(tmp_path / "run")}, spin=spin)
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    uri, machine = settings.run.uri, hardware(settings)
    policy = validate(uri, 0, 0, train(uri, 0, 0, reference, scores, machine), machine, reference)
    twin = tmp_path / "twin"
    train(uri, 0, 1, policy, scores, hardware(settings))
    expected = losses(LocalRun(Path(uri)))
    shutil.move(uri, twin)
    # the second epoch of the same run with DeepSpeed: the backend is fixed for a run, the ranks may change
    shutil.copytree(twin, uri)
    shutil.rmtree(LocalRun(Path(uri)).path(layout.epoch(0, 1)))
    train(uri, 0, 1, policy, scores, TWO_RANKS)
    assert losses(LocalRun(Path(uri))) == pytest.approx(expected, abs=bounds.of_small_run(tiny_llama, num_steps=6))


def test_a_failing_rank_reports_its_error_and_no_weights_change(make_settings: MakeSettings) -> None:
    training = {"lr": 1e30, "gradient_clip_val": 0.0, "backend": "deepspeed", "zero_stage": 2}
    settings = make_settings(training=training, hardware=TWO_RANKS)
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    with pytest.raises(NonFiniteError, match=r"iteration 0, epoch 0, step \d.*Nothing was updated"):
        train(settings.run.uri, 0, 0, reference, scores, hardware(settings))
    assert not LocalRun(Path(settings.run.uri)).exists(layout.epoch_manifest(0, 0))


def test_ranks_with_different_numbers_of_chunks_do_not_deadlock_under_zero_3(tmp_path: Path) -> None:
    script = Path(__file__).with_name("uneven_ranks.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, str(script), str(tmp_path)], check=True, capture_output=True)
    results = [json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    model = make_model()
    before = answer_logprobs(model, OF_RANK)
    (-before.sum() / 2).backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(model.parameters(), lr=LR).step()
    after = answer_logprobs(model, OF_RANK)
    expected = torch.stack([before, after], dim=1).detach()
    atol = 2 * bounds.of_logprob(model, num_tokens=9)  # of the forward pass, and of the update's
    assert atol < 1e-3
    torch.testing.assert_close(torch.tensor(results), expected, rtol=0.0, atol=atol)
    assert (expected[:, 0] - expected[:, 1]).abs().min() > 1e-2  # the update shows
