"""The objectives against TRL's `DPOTrainer`, on the same model and pairs; its loss is of log-probabilities it sums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.loss import AnswerLengths, AnswerLogprobs, Objective, PairTerms, pair_terms
from spin_components.algorithm.packing import Prompted

pytest.importorskip("trl")
BETA = 0.5
PAIRS = [([5, 6, 7], [8, 9, 2], [10, 11, 12, 13, 2]), ([20], [21, 2], [22, 23, 24, 25, 26, 27])]


@pytest.fixture(scope="module")
def trainer(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """TRL's trainer over the pairs, whose policy has left its reference."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Prepared(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    rows = [{"prompt_ids": p, "chosen_ids": y, "rejected_ids": other} for p, y, other in PAIRS]
    output = str(tmp_path_factory.mktemp("trl"))
    found = Prepared(
        model=AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32),
        args=DPOConfig(output, beta=BETA, bf16=False, use_cpu=True, report_to=[], gradient_checkpointing=False),
        processing_class=AutoTokenizer.from_pretrained(tiny_llama),
        train_dataset=Dataset.from_list(rows),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    yield found


def of_trl(trainer: Any, pairs: list[Any], beta: float, *losses: str) -> tuple[float, Tensor]:
    """Loss and all gradients as one vector, by TRL."""
    rows = [{"prompt_ids": p, "chosen_ids": y, "rejected_ids": other} for p, y, other in pairs]
    trainer.beta, trainer.loss_types, trainer.loss_weights = beta, list(losses), [1.0] * len(losses)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    return float(loss.detach()), gradient(trainer.model, loss)


def ours(trainer: Any, pairs: list[Any], objective: Objective) -> tuple[float, Tensor]:
    """The same, by this project."""
    groups = [Prompted(p, (y, other)) for p, y, other in pairs]
    policy = AnswerLogprobs(*answer_logprobs(trainer.model, groups).view(-1, 2).unbind(-1))
    with torch.no_grad():
        reference = AnswerLogprobs(*answer_logprobs(trainer.ref_model, groups).view(-1, 2).unbind(-1))
    lengths = AnswerLengths(torch.tensor([len(y) for _, y, _ in pairs]), torch.tensor([len(g) for *_, g in pairs]))
    terms: PairTerms = pair_terms(policy, reference, lengths, objective)
    loss = terms.losses.mean()
    assert float(terms.rewards.actual.detach().abs().max()) > 0.01, "the policy is to differ from its reference"
    return float(loss.detach()), gradient(trainer.model, loss)


def gradient(model: Any, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(("loss", "name"), [("logistic", "sigmoid"), ("hinge", "hinge")])
def test_losses_and_gradients_are_trls(trainer: Any, loss: Any, name: str) -> None:
    expected, expected_gradient = of_trl(trainer, PAIRS, BETA, name)
    found, found_gradient = ours(trainer, PAIRS, Objective(BETA, loss))
    assert found == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_least_squares_a_token_is_trls_ipo(trainer: Any) -> None:
    # TRL's (h - 1 / (2 b))^2 with b = beta / 2 is (beta h - 1)^2 / beta^2; its h is of means over tokens
    expected, expected_gradient = of_trl(trainer, PAIRS, BETA / 2, "ipo")
    found, found_gradient = ours(trainer, PAIRS, Objective(BETA, "least_squares", length_normalized=True))
    assert found / BETA**2 == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found_gradient / BETA**2, expected_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pair", PAIRS, ids=["longer", "shorter"])
def test_the_sft_term_of_one_pair_is_trls(trainer: Any, pair: Any) -> None:
    # of several pairs TRL takes the mean over all tokens at once, this project over pairs, as in arXiv:2404.19733
    expected, expected_gradient = of_trl(trainer, [pair], BETA, "sigmoid", "sft")
    found, found_gradient = ours(trainer, [pair], Objective(BETA, sft_weight=1.0))
    assert found == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-4, atol=1e-5)
