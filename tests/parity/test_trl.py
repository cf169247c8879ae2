"""Losses, rewards, accuracy and gradients compared with TRL's `DPOTrainer`, whose sigmoid loss is SPIN's.

TRL pads on the right and computes policy and reference with its own copies of the models. This project packs or
pads, and every model family is tested with both layouts.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.loss import (
    AnswerLengths,
    AnswerLogprobs,
    Objective,
    pair_terms,
)
from spin_components.algorithm.metrics import metric_sums, metrics_from_sums
from spin_components.algorithm.packing import Prompted
from support import bounds
from support.bounds import float64
from support.families import CONFIGS, LAYOUTS, model_of

BETA = 0.5
EOS = 2  # also the pad token, as in the tiny tokenizer
PAIRS = [
    ([5, 6, 7], [8, 9, EOS], [10, 11, 12, 13, EOS]),
    ([20], [21, EOS], [22, 23, 24, 25, 26, 27]),  # the generated answer was cut: no EOS
    ([30, 31, 32, 33, 34, 35, 36], [37, 38, 39, 40, 41, EOS], [42, EOS]),
    ([50, 51], [EOS, 52, EOS], [53]),  # EOS within an answer, and an answer of one token
]

NUM_TOKENS = sum(len(y) + len(other) for _, y, other in PAIRS)

Pairs = Sequence[tuple[list[int], list[int], list[int]]]
Trainers = Callable[[str], Any]


class Found(NamedTuple):
    """Loss, metrics by this project's names, and the gradients of all parameters."""

    loss: float
    metrics: dict[str, float]
    gradients: dict[str, Tensor]


@pytest.fixture(scope="module")
def trainers(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainers]:
    """TRL's trainer of a model family, with a policy that differs from the reference."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Prepared(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    output = str(tmp_path_factory.mktemp("trl"))

    @functools.cache
    def trainer(family: str) -> Any:
        return Prepared(
            model=policy_of(family),
            ref_model=copy.deepcopy(model_of(family)),
            args=DPOConfig(output, beta=BETA, bf16=False, use_cpu=True, report_to=[], gradient_checkpointing=False),
            processing_class=AutoTokenizer.from_pretrained(tiny_llama),
            train_dataset=Dataset.from_list(rows_of(PAIRS)),
        )

    yield trainer


def rows_of(pairs: Pairs) -> list[dict[str, list[int]]]:
    return [{"prompt_ids": x, "chosen_ids": y, "rejected_ids": other} for x, y, other in pairs]


def policy_of(family: str, attention: str = "eager") -> Any:
    """A copy of the reference, `model_of(family)`, with small changes to all weights."""
    policy = copy.deepcopy(model_of(family, attention))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(policy.named_parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy


def of_trl(trainer: Any, pairs: Pairs, beta: float, *losses: str) -> Found:
    trainer.beta, trainer.loss_types, trainer.loss_weights = beta, list(losses), [1.0] * len(losses)
    mode = "train" if trainer.model.training else "eval"
    trainer._metrics[mode].clear()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows_of(pairs)))
    logged = trainer._metrics[mode]
    names = {
        "acc": "accuracies",
        "rewards_actual_mean": "chosen",
        "rewards_generated_mean": "rejected",
        "margin": "margins",
    }
    metrics = {ours: float(logged[f"rewards/{theirs}"][-1]) for ours, theirs in names.items()}
    return Found(float(loss.detach()), metrics, gradients(trainer.model, loss))


def of_ours(family: str, attention: str, pairs: Pairs, objective: Objective) -> Found:
    groups = [Prompted(x, (y, other)) for x, y, other in pairs]
    model = policy_of(family, attention)
    policy = AnswerLogprobs(*answer_logprobs(model, groups).view(-1, 2).unbind(-1))
    with torch.no_grad():
        scores = answer_logprobs(model_of(family, attention), groups)
    reference = AnswerLogprobs(*scores.view(-1, 2).unbind(-1))
    lengths = AnswerLengths(torch.tensor([len(y) for _, y, _ in pairs]), torch.tensor([len(g) for *_, g in pairs]))
    terms = pair_terms(policy, reference, lengths, objective)
    assert float(terms.rewards.actual.detach().abs().min()) > 0.01, "the policy must differ from its reference"
    metrics = metrics_from_sums(metric_sums(terms, lengths.generated, torch.ones(len(pairs))), with_sft=False)
    values = {name: metrics[name] for name in ("acc", "rewards_actual_mean", "rewards_generated_mean")}
    margin = values["rewards_actual_mean"] - values["rewards_generated_mean"]
    loss = terms.losses.mean()
    return Found(float(loss.detach()), {**values, "margin": margin}, gradients(model, loss))


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], scale: float = 1.0) -> None:
    """Gradients. Theirs pass through float32 on their way back: a few roundings of each token's share."""
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    assert largest > 1e-3
    scaled = {name: tensor * scale for name, tensor in found.items()}
    atol = NUM_TOKENS * bounds.gamma(4) * largest
    torch.testing.assert_close(scaled, expected, rtol=0.0, atol=atol)


def bound_of(family: str) -> float:
    """Of the loss and the rewards: four sums of log-probabilities, beta times."""
    return 4 * BETA * bounds.of_logprob(model_of(family), num_tokens=6)


@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("family", CONFIGS)
@float64()
def test_loss_rewards_accuracy_and_gradients_are_trls(trainers: Trainers, family: str, attention: str) -> None:
    expected = of_trl(trainers(family), PAIRS, BETA, "sigmoid")
    found = of_ours(family, attention, PAIRS, Objective(BETA))
    assert found.loss == pytest.approx(expected.loss, abs=bound_of(family))
    assert found.metrics == pytest.approx(expected.metrics, abs=bound_of(family))
    assert_close(found.gradients, expected.gradients)


def test_accuracy_is_strictly_between_0_and_1_for_some_model() -> None:
    # otherwise the test above would accept an accuracy that is always 0 or 1
    accuracies = {family: of_ours(family, "eager", PAIRS, Objective(BETA)).metrics["acc"] for family in CONFIGS}
    assert any(0.0 < acc < 1.0 for acc in accuracies.values()), accuracies


@float64()
def test_hinge_and_its_gradients_are_trls(trainers: Trainers) -> None:
    expected = of_trl(trainers("llama"), PAIRS, BETA, "hinge")
    found = of_ours("llama", "eager", PAIRS, Objective(BETA, "hinge"))
    assert found.loss == pytest.approx(expected.loss, abs=bound_of("llama"))
    assert_close(found.gradients, expected.gradients)


@float64()
def test_least_squares_a_token_is_trls_ipo(trainers: Trainers) -> None:
    # TRL's (h - 1 / (2 b))^2 with b = beta / 2 is (beta h - 1)^2 / beta^2; its h is of means over tokens
    expected = of_trl(trainers("llama"), PAIRS, BETA / 2, "ipo")
    found = of_ours("llama", "eager", PAIRS, Objective(BETA, "least_squares", length_normalized=True))
    assert found.loss / BETA**2 == pytest.approx(expected.loss, abs=bound_of("llama") / BETA**2 * 8)
    assert_close(found.gradients, expected.gradients, scale=1 / BETA**2)


@pytest.mark.parametrize("pair", PAIRS[:2], ids=["longer", "shorter"])
@float64()
def test_the_sft_term_of_one_pair_is_trls(trainers: Trainers, pair: Any) -> None:
    # of several pairs TRL takes the mean over all tokens at once, this project over pairs, as in arXiv:2404.19733
    expected = of_trl(trainers("llama"), [pair], BETA, "sigmoid", "sft")
    found = of_ours("llama", "eager", [pair], Objective(BETA, sft_weight=1.0))
    assert found.loss == pytest.approx(expected.loss, abs=bound_of("llama"))
    assert_close(found.gradients, expected.gradients)
