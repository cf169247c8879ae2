"""Validation's negative log-likelihood compared with the loss that `transformers` computes from labels."""

from __future__ import annotations

import pytest
import torch

from spin_components.data.collate import spin_custom_collate
from spin_components.data.shards import Prompt
from spin_components.model.compute import Compute
from spin_components.model.scoring import answer_losses, mean_nll, validation_batches
from spin_components.settings.run import ValidationSettings
from support import bounds
from support.bounds import float64
from support.families import CONFIGS, LAYOUTS, model_of

CPU = Compute(torch.device("cpu"), "float32")
EOS = 2
PROMPTS = [
    Prompt(0, [5, 6, 7, 8, 9], [10, 11, 12, EOS], True),
    Prompt(1, [20], [21], False),
    Prompt(2, [30, 31, 32], [EOS, 33, EOS], True),
    Prompt(3, [40, 41], [42, EOS], True),
    Prompt(4, [50, 51], [52, 53, 54, 55, 56, 57], False),
]


@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("family", CONFIGS)
@float64()
def test_the_mean_over_all_answers_is_the_loss_of_one_padded_batch_with_labels(family: str, attention: str) -> None:
    # the batch is NeMo's contract, padded with EOS; -100 stands where its mask is False, on prompts and padding
    items = [
        {
            "input_ids": torch.tensor(prompt.prompt_ids + prompt.actual_ids),
            "mask": torch.tensor([False] * len(prompt.prompt_ids) + [True] * len(prompt.actual_ids)),
            "context_ids": torch.tensor(prompt.prompt_ids),
            "answer_ids": torch.tensor(prompt.actual_ids),
        }
        for prompt in PROMPTS
    ]
    batch = spin_custom_collate(items, EOS)
    ids = batch["prompts_and_answers"]
    attended = torch.arange(ids.shape[1]) < batch["combined_lengths"][:, None]
    with torch.no_grad():
        expected = model_of(family)(
            input_ids=ids,
            attention_mask=attended.long(),
            labels=ids.masked_fill(~batch["masks"], -100),
            use_cache=False,
        ).loss
    batches = validation_batches(PROMPTS, ValidationSettings(batch_size=2))
    found = [loss for losses in answer_losses(model_of(family, attention), batches, CPU) for loss in losses]
    bound = bounds.of_logprob(model_of(family), num_tokens=6)
    assert mean_nll(found) == pytest.approx(float(expected), abs=bound)
    assert sum(loss.num_tokens for loss in found) == int(batch["masks"].sum())
