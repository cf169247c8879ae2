"""The first loss of an iteration with the demo's model is ln 2, in float32 and in bf16."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spin_components.algorithm.batch_division import BatchDivision
from spin_components.algorithm.batching import permutation
from spin_components.algorithm.logprobs import answer_logprobs, is_packed
from spin_components.algorithm.loss import STEP_ZERO_TOLERANCE, AnswerLogprobs, spin_loss
from spin_components.algorithm.token_budget import PairLengths
from spin_components.data.builtin import docstrings, make_smollm2
from spin_components.data.formats import Conversation, Message
from spin_components.data.rendering import Renderer
from spin_components.data.shards import Pair
from spin_components.data.turn_ends import find_eos_ids
from spin_components.model.batch_layout import enable_packed_attention
from spin_components.model.compute import Compute, Precision
from spin_components.model.folder import load_tokenizer
from spin_components.model.loading import load_model
from spin_components.model.scoring import all_answers
from spin_components.ref_logprob.step import score_pairs
from spin_components.settings.run import ModelSettings
from spin_components.settings.settings import Settings
from spin_components.settings.training import TrainingSettings
from support.bounds import gamma
from support.playing import losses, play

NUM_PAIRS = 4
"""Two ranks with a micro-batch of two pairs each."""


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Pair]]:
    """SmolLM2-135M, and pairs whose "generated" answer is the human answer to another question."""
    folder: Path = tmp_path_factory.mktemp("models") / "smollm2"
    make_smollm2(folder)
    settings = ModelSettings(base=str(folder))
    tokenizer = load_tokenizer(folder, settings)
    eos_ids = find_eos_ids(tokenizer, 2)
    assert eos_ids == [2], "SmolLM2 ends a turn with <|im_end|>"
    renderer = Renderer(tokenizer, eos_ids, max_length=96, max_prompt_length=64)
    records = list(docstrings(limit=2 * NUM_PAIRS))
    pairs = []
    for index, ((question, answer), (_, other)) in enumerate(
        zip(records[:NUM_PAIRS], records[NUM_PAIRS:], strict=True)
    ):
        prompt = (Message("user", question),)
        actual, generated = (renderer.render(Conversation(prompt, text)) for text in (answer, other))
        pairs.append(Pair(index, actual.prompt_ids, actual.actual_ids, generated.actual_ids[:-1], "length"))
    return load_model(folder, settings).eval(), pairs


@pytest.fixture(params=["aligned", "packed"])
def scored_model(
    request: pytest.FixtureRequest, demo_model: tuple[Any, list[Pair]]
) -> Iterator[tuple[Any, list[Pair]]]:
    """The model, with packed or padded batches."""
    model, pairs = demo_model
    if request.param == "packed":
        assert enable_packed_attention(model, Compute(torch.device("cpu"), "float32")) == ""
    yield model, pairs
    model.set_attn_implementation("eager")


def _distance(model: Any, pairs: list[Pair], precision: Precision, *, like_reference: bool) -> float:
    """Distance of the first loss from ln 2, with the policy's batches equal to the reference's or not."""
    compute = Compute(torch.device("cpu"), precision)
    training = TrainingSettings(global_batch_size=NUM_PAIRS, micro_batch_size=2)
    batch = permutation(NUM_PAIRS, seed=1)
    scores = score_pairs(model, pairs, compute, [batch], training, ranks=2)
    if like_reference:
        lengths = PairLengths(
            [len(pair.prompt_ids) + sum(map(len, pair.answers)) for pair in pairs],
            [len(pair.prompt_ids) for pair in pairs],
            [max(map(len, pair.answers)) for pair in pairs],
            [2] * NUM_PAIRS,
        )
        division = BatchDivision(lengths, training, 2, is_packed=is_packed(model))
        groups = [list(micro.pairs) for rank in (0, 1) for micro in division.of_rank(batch, rank)]
    else:
        groups = [[index] for index in batch]
    rows = []
    for indices in groups:
        with compute.autocast():  # with gradient, as in training
            logprobs = answer_logprobs(model, all_answers([pairs[index] for index in indices]))
        rows.append(logprobs.detach().view(-1, 2))
    order = [index for indices in groups for index in indices]
    reference = AnswerLogprobs(
        torch.tensor([scores[index].ref_actual for index in order]),
        torch.tensor([scores[index].ref_generated for index in order]),
    )
    return abs(float(spin_loss(AnswerLogprobs(*torch.cat(rows).unbind(-1)), reference, beta=0.1)) - math.log(2))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_first_loss_is_ln_2_to_rounding(scored_model: tuple[Any, list[Pair]], precision: Precision) -> None:
    # far within STEP_ZERO_TOLERANCE: in the same micro-batches policy and reference round alike, so every margin is 0
    # and what is left are the roundings of ln 2 and of the mean
    assert _distance(*scored_model, precision, like_reference=True) < gamma(NUM_PAIRS + 4) * math.log(2)


def test_in_float32_the_first_loss_does_not_depend_on_batches(scored_model: tuple[Any, list[Pair]]) -> None:
    assert _distance(*scored_model, "float32", like_reference=False) < STEP_ZERO_TOLERANCE["float32"]


@pytest.mark.usefixtures("warm_python")
@pytest.mark.parametrize("budget", [{}, {"micro_batch_tokens": 220}])
@pytest.mark.parametrize("packing", ["on", "off"])
def test_in_bf16_two_ranks_begin_at_ln_2_whatever_the_penalty(
    make_settings: Callable[..., Settings], packing: str, budget: dict[str, int]
) -> None:
    # a difference of half a nat, as bf16 has between batches, would move the loss by up to 12
    training = {"backend": "deepspeed", "precision": "bf16", "micro_batch_size": 2, "packing": packing, **budget}
    run = play(
        make_settings(
            training=training,
            spin={"ref_policy_kl_penalty": 50.0},
            generation={"max_new_tokens": 6},
            validation={"num_samples": 0},
            hardware={"device": "cpu", "ranks": 2, "threads": 1},
        )
    )
    assert abs(losses(run)[0] - math.log(2)) < gamma(8 + 4) * math.log(2)
