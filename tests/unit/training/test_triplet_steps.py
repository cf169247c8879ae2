"""Scores and training steps of pairs with third answers, packed and padded, against transformers' own forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spin_components.algorithm.batching import MicroBatch
from spin_components.algorithm.loss import Objective
from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Pair, Score
from spin_components.data.triplets import Triplets
from spin_components.errors import NonFiniteError, StepZeroError
from spin_components.model.batch_layout import enable_packed_attention
from spin_components.model.compute import Compute
from spin_components.model.scoring import pair_logprobs
from spin_components.record.pairs import ScoredPairs
from spin_components.ref_logprob.step import score_pairs
from spin_components.settings.training import TrainingSettings
from spin_components.training.torch_backend import TorchBackend
from spin_components.training.train_step import StepResult, train_single_step
from support import bounds

pytestmark = pytest.mark.usefixtures("in_float64")

CPU = Compute(torch.device("cpu"), "float32")  # without autocast
ALPHA, BETA = 0.5, 0.3
OBJECTIVE = Objective(0.2, "triplet", alpha=ALPHA, history_weight=BETA)
PAIRS: Sequence[Pair] = [
    Pair(0, [5, 6, 7], [8, 9, 2], [10, 11, 12, 13, 2], "stop", 1),
    Pair(1, [20], [21, 2], [22, 23, 24, 25, 26, 27], "length", 1),
    Pair(2, [30, 31, 32, 33, 34], [35, 36, 37, 38, 2], [39, 2], "stop", 1),
    Pair(3, [40, 41], [42, 2], [43, 44, 2], "stop", 1),
]
PROTOS = [Pair(index, [1], [1], ids, "stop") for index, ids in enumerate([[14, 15, 2], [28, 2], [44, 45, 46, 2]])]
TRIPLETS = Triplets(PAIRS, PROTOS, np.array([0, 1, -1, 2]))
"""Pair 2 has no third answer."""


@pytest.fixture(params=["packed", "padded"])
def make_model(request: pytest.FixtureRequest, make_random_llama: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    def make() -> Any:
        model = make_random_llama()
        if request.param == "packed":
            assert enable_packed_attention(model, CPU) == ""
        return model

    yield make


def stock_model(make_model: Callable[[], Any]) -> Any:
    """The same weights with transformers' own attention."""
    model = make_model()
    model.set_attn_implementation("eager")
    return model


def logprob(model: Any, prompt_ids: list[int], answer_ids: list[int]) -> Tensor:
    """log pi(answer | prompt), by transformers' own forward pass over the single sequence."""
    logits = model(input_ids=torch.tensor([prompt_ids + answer_ids]), use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits[len(prompt_ids) - 1 : -1], dim=-1)
    return logprobs[torch.arange(len(answer_ids)), torch.tensor(answer_ids)].sum()


def loss_of(model: Any) -> Tensor:
    """Equation 7 of arXiv:2601.08198, mean over the pairs."""
    total = torch.zeros(())
    for pair in TRIPLETS:
        y, y_t, *y_0 = (logprob(model, pair.prompt_ids, ids) for ids in pair.answers)
        total = total - torch.nn.functional.logsigmoid(ALPHA * (y - y_t))
        if y_0:
            total = total - BETA * torch.nn.functional.logsigmoid(ALPHA * (y_t - y_0[0]))
    return total / len(TRIPLETS)


def scores_of(model: Any, micro_batch_size: int = 2) -> list[Score]:
    training = TrainingSettings(micro_batch_size=micro_batch_size, global_batch_size=4)
    return list(score_pairs(model.eval(), TRIPLETS, CPU, [range(4)], training, with_protos=True))


def micros(*parts: Sequence[int], filling: int = 0) -> list[MicroBatch]:
    weights = iter([0.0] * filling + [1.0] * 9)
    return [MicroBatch(tuple(part), tuple(next(weights) for _ in part)) for part in parts]


SPLITS = [
    micros([0, 1, 2, 3]),
    micros([0], [1], [2], [3]),
    micros([2, 3], [1, 0]),
    micros([2, 2], [3, 0], [1, 2], filling=2),
]


def step(
    model: Any, scores: Sequence[Score], parts: list[MicroBatch], *, is_step_zero: bool = True
) -> tuple[StepResult, dict[str, Tensor]]:
    """Result and gradients of one step."""
    backend = TorchBackend(model, TrainingSettings(gradient_clip_val=0.0, eps=1e-2), CPU)
    gradients: dict[str, Tensor] = {}
    backend._optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})
    )
    data = ScoredPairs(TRIPLETS, scores, [range(4)], PairCounts())
    result = train_single_step(
        backend, data, parts, batch=range(4), objective=OBJECTIVE, lr=1e-2, is_step_zero=is_step_zero, where="step 0"
    )
    return result, gradients


def bound_of(model: Any) -> float:
    """A loss takes four sums of log-probabilities, alpha <= 1 times; a gradient two more passes through the layers."""
    return 3 * 4 * bounds.of_logprob(model, sum(len(ids) for pair in TRIPLETS for ids in pair.answers))


def test_log_probabilities_are_those_of_single_sequences(make_model: Callable[[], Any]) -> None:
    model, stock = make_model(), stock_model(make_model)
    with torch.no_grad():
        found = pair_logprobs(model, TRIPLETS)
        sums = [[float(logprob(stock, pair.prompt_ids, ids)) for ids in pair.answers] for pair in TRIPLETS]
    assert found.proto is not None
    rows = torch.stack([found.actual, found.generated, found.proto], -1).tolist()
    for row, expected in zip(rows, sums, strict=True):
        assert row == pytest.approx([*expected, *[0.0] * (3 - len(expected))], abs=bounds.of_logprob(model, 6))
    assert pair_logprobs(model, PAIRS).proto is None


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_scores_have_those_of_the_third_answers(make_model: Callable[[], Any], micro_batch_size: int) -> None:
    model, stock = make_model(), stock_model(make_model)
    scores = scores_of(model, micro_batch_size)
    with torch.no_grad():
        expected = [
            float(logprob(stock, pair.prompt_ids, pair.proto_ids)) if pair.proto_ids else math.nan for pair in TRIPLETS
        ]
    found = [score.ref_proto for score in scores]
    assert found == pytest.approx(expected, abs=bounds.of_logprob(model, 4), nan_ok=True)
    plain = score_pairs(model, PAIRS, CPU, [range(4)], TrainingSettings(micro_batch_size=1, global_batch_size=4))
    assert [score.ref_proto for score in plain] == [None] * 4


@pytest.mark.parametrize("parts", SPLITS, ids=["whole", "one by one", "mixed", "filled"])
def test_loss_and_gradient_are_those_of_the_formula(make_model: Callable[[], Any], parts: list[MicroBatch]) -> None:
    model, other = make_model(), stock_model(make_model)
    expected = loss_of(other)
    expected.backward()  # type: ignore[no-untyped-call]
    result, gradients = step(model, scores_of(model), parts)
    bound = bound_of(model)
    assert result.metrics["loss"] == pytest.approx(float(expected.detach()), abs=bound)
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0.0, atol=bound)
    with torch.no_grad():
        sums = [[float(logprob(other, pair.prompt_ids, ids)) for ids in pair.answers] for pair in TRIPLETS]
    current = [ALPHA * (y - y_t) for y, y_t, *_ in sums]
    historical = [ALPHA * (y_t - y_0[0]) for _, y_t, *y_0 in sums if y_0]
    expected_metrics = {
        "current_advantage_mean": sum(current) / 4,
        "current_acc": sum(value > 0 for value in current) / 4,
        "historical_advantage_mean": sum(historical) / 3,
        "historical_acc": sum(value > 0 for value in historical) / 3,
        # the policy is the reference, so the rewards against it are 0
        "rewards_actual_mean": 0.0,
        "log_ratios_generated_mean": 0.0,
    }
    assert {name: result.metrics[name] for name in expected_metrics} == pytest.approx(expected_metrics, abs=bound)


def test_a_score_of_a_third_answer_that_is_off_stops_the_first_step(make_model: Callable[[], Any]) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = scores_of(model)
    shifted = [scores[0], scores[1], scores[2], replace(scores[3], ref_proto=(scores[3].ref_proto or 0.0) - 2.0)]
    with pytest.raises(StepZeroError, match=r"step 0: the first loss .*, expected this objective's loss at the refer"):
        step(model, shifted, SPLITS[2])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    step(model, shifted, SPLITS[2], is_step_zero=False)  # later, scores have no part in the loss


def test_a_third_answer_that_is_not_finite_names_the_pairs(make_model: Callable[[], Any]) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[45, 0] = math.nan  # a token of one third answer
    with pytest.raises(NonFiniteError, match="not finite"):
        scores_of(model)
