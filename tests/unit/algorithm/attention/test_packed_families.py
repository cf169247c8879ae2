"""Every family in padded batches and, where it packs, with every kernel, against its stock forward pass of single
sequences, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from spin_components.algorithm.attention.flex import FlexKernel
from spin_components.algorithm.attention.kernels import FLEX, VARLEN
from spin_components.algorithm.attention.varlen import VarlenKernel
from spin_components.algorithm.logprobs import PromptAnswer, answer_logprobs
from spin_components.algorithm.packing import PACKED, Kernel, Prompted, attend_by_answer
from spin_components.model.batch_layout import register_kernel
from spin_components.model.families import check_family
from support import bounds
from support.attention import flex_reference, varlen_reference
from support.families import CONFIGS, OTHERS, alone
from unit.model.test_families import PACKED as OTHERS_PACKED

KERNELS: dict[str, Kernel] = {
    PACKED: attend_by_answer,
    VARLEN: VarlenKernel(varlen_reference, has_softcap=True),
    FLEX: FlexKernel(flex_reference),
}
# longer than the windows of 30 tokens, a prompt of one token, one to three answers
GROUPS = [
    Prompted([*range(5, 20)], ([*range(30, 52)], [*range(40, 47)])),
    Prompted([20], ([5, 6, 2], [9])),
    Prompted([40, 41, 42], ([43, 44, 45],)),
    Prompted([63, 62], ([61, 60], [59, 58, 57, 56, 55], [54])),
]
ALL = [PromptAnswer(prompt, answer) for prompt, answers in GROUPS for answer in answers]
WEIGHTS = [1.0, -2.0, 0.5, 3.0, -1.0, 2.0, -0.5, 1.5]


def stock(family: str) -> Any:
    """The model of a family in float64, with random weights and its own attention."""
    bounds.few_threads()
    torch.manual_seed(0)
    config = copy.deepcopy({**CONFIGS, **OTHERS}[family])
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float64
    ).eval()
    check_family(model)  # without dropout and noise
    return model


def gradients(model: Any, values: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (values * torch.tensor(WEIGHTS)).sum().backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", [*CONFIGS, *OTHERS])
@bounds.float64()
def test_packed_and_padded_batches_score_and_train_as_single_sequences(family: str) -> None:
    model = stock(family)
    values = torch.stack([alone(model, sequence) for sequence in ALL])
    expected = gradients(model, values)
    atol = bounds.of_logprob(model, max(len(sequence.answer_ids) for sequence in ALL))
    num_tokens = sum(len(sequence.answer_ids) for sequence in ALL)
    of_gradients = bounds.of_gradients(model, expected, WEIGHTS, num_tokens)
    has_sinks, packs = family == "gpt_oss", family in OTHERS_PACKED or family in CONFIGS
    for name in ("eager", *(KERNELS if packs else ())):
        if has_sinks and name == VARLEN:
            continue
        if name in KERNELS:
            register_kernel(name, KERNELS[name])
        model.set_attn_implementation(name)
        found = answer_logprobs(model, GROUPS)
        torch.testing.assert_close(found, values, rtol=0.0, atol=atol)
        torch.testing.assert_close(gradients(model, found), expected, rtol=0.0, atol=of_gradients)
