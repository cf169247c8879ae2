from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spin_components.model.compute import Compute
from spin_components.settings.training import TrainingSettings
from spin_components.training.optimizer import STATE_KEYS, build_optimizer
from spin_components.training.parts import Parts, write_parts
from spin_components.training.torch_backend import TorchBackend
from support.bounds import gamma

CPU = Compute(torch.device("cpu"), "float32")
RATES = [1e-2, 5e-3, 2e-2, 1e-3, 1e-2]


def backend_of(model: Any, optimizer: str) -> TorchBackend:
    settings = TrainingSettings.model_validate({"optimizer": optimizer, "weight_decay": 0.1})
    return TorchBackend(model, settings, CPU)


def train(backend: TorchBackend, steps: range) -> None:
    for step in steps:
        ids = torch.tensor([[1 + step, 5, 9, 13 - step]])
        backend.backward(backend.model(input_ids=ids, labels=ids, use_cache=False).loss)
        backend.clip_and_step(RATES[step])


def weights(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_training_goes_on_bit_for_bit_from_saved_state(
    make_random_llama: Callable[[], Any], tmp_path: Path, optimizer: str
) -> None:
    whole = backend_of(make_random_llama(), optimizer)
    train(whole, range(5))

    first = backend_of(make_random_llama(), optimizer)
    train(first, range(3))
    write_parts(tmp_path, "optimizer", first.optimizer_parts())
    second = backend_of(make_random_llama(), optimizer)
    second.model.load_state_dict(weights(first.model))
    second.load_optimizer(Parts(sorted(tmp_path.iterdir())), num_updates=3)
    train(second, range(3, 5))
    assert_identical(weights(second.model), weights(whole.model))

    # a check of this test: without the state the weights would differ
    third = backend_of(make_random_llama(), optimizer)
    third.model.load_state_dict(weights(first.model))
    train(third, range(3, 5))
    assert any(not torch.equal(tensor, whole.model.state_dict()[name]) for name, tensor in weights(third.model).items())


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_state_is_saved_by_parameter_name(make_random_llama: Callable[[], Any], tmp_path: Path, optimizer: str) -> None:
    backend = backend_of(make_random_llama(), optimizer)
    train(backend, range(1))
    write_parts(tmp_path, "optimizer", backend.optimizer_parts())
    expected = {
        f"{key}/{name}": parameter.shape
        for name, parameter in backend.model.named_parameters()
        for key in STATE_KEYS[optimizer]
    }
    parts = Parts(sorted(tmp_path.iterdir()))
    assert {name: parts.shape(name) for name in parts} == expected
    assert {parts.whole(name).dtype for name in parts} == {torch.float32}


def test_state_before_the_first_update_is_none(make_random_llama: Callable[[], Any]) -> None:
    assert list(backend_of(make_random_llama(), "adamw").optimizer_parts()) == []


def updated(parameter: float, gradient: float, lr: float, **settings: Any) -> float:
    """One number after one update."""
    number = torch.nn.Parameter(torch.tensor([parameter], dtype=torch.float64))
    number.grad = torch.tensor([gradient], dtype=torch.float64)
    optimizer = build_optimizer(TrainingSettings.model_validate(settings), [number])
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return number.item()


def test_adamw_by_hand() -> None:
    # decay: 2 * (1 - 0.1 * 0.5) = 1.9; first moment 0.5 and second 0.25 after bias correction: 0.1 * 0.5 / (0.5 + 0.5)
    found = updated(2.0, 0.5, lr=0.1, optimizer="adamw", weight_decay=0.5, eps=0.5)
    assert found == pytest.approx(1.9 - 0.05, rel=gamma(20, torch.float64))


def test_rmsprop_by_hand() -> None:
    # square average 0.25 * 0.8^2 = 0.16, its root 0.4: 0.1 * 0.8 / (0.4 + 0.1) = 0.16
    found = updated(2.0, 0.8, lr=0.1, optimizer="rmsprop", rmsprop_alpha=0.75, eps=0.1)
    assert found == pytest.approx(2.0 - 0.16, rel=gamma(20, torch.float64))


@pytest.mark.usefixtures("in_float64")
def test_gradients_are_clipped_by_their_norm_and_the_norm_before_is_returned(
    make_random_llama: Callable[[], Any],
) -> None:
    model = make_random_llama()
    backend = TorchBackend(model, TrainingSettings(gradient_clip_val=0.5), CPU)
    seen: list[float] = []
    backend._optimizer.register_step_pre_hook(lambda *_: seen.append(norm(model)))
    ids = torch.tensor([[1, 5, 9, 13]])
    backend.backward(model(input_ids=ids, labels=ids, use_cache=False).loss)
    before = norm(model)
    assert before > 0.5
    rounding = norm_bound(model)
    assert backend.clip_and_step(1e-3) == pytest.approx(before, rel=rounding)
    # torch divides by the norm and 1e-6
    assert seen == [pytest.approx(0.5 * before / (before + 1e-6), rel=2 * rounding)]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.usefixtures("in_float64")
def test_a_clip_of_0_is_off(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    backend = TorchBackend(model, TrainingSettings(gradient_clip_val=0.0), CPU)
    seen: list[float] = []
    backend._optimizer.register_step_pre_hook(lambda *_: seen.append(norm(model)))
    ids = torch.tensor([[1, 5, 9, 13]])
    backend.backward(model(input_ids=ids, labels=ids, use_cache=False).loss)
    before = norm(model)
    assert backend.clip_and_step(1e-3) == pytest.approx(before, rel=norm_bound(model))
    assert seen == [before]


def norm_bound(model: Any) -> float:
    """Relative, of two ways to add up the squares of every gradient: no term cancels another."""
    return 2 * gamma(sum(parameter.numel() for parameter in model.parameters()), torch.float64)


def norm(model: Any) -> float:
    return float(torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm())
