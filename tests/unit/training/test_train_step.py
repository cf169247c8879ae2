from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from spin_components.algorithm.batching import MicroBatch
from spin_components.algorithm.loss import STEP_ZERO_LOSS, Objective
from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Pair, Score
from spin_components.errors import NonFiniteError, StepZeroError
from spin_components.model.compute import Compute
from spin_components.model.scoring import all_answers
from spin_components.record.pairs import ScoredPairs
from spin_components.ref_logprob.step import score_pairs
from spin_components.settings.training import TrainingSettings
from spin_components.training.torch_backend import TorchBackend
from spin_components.training.train_step import StepResult, train_single_step
from support import bounds

pytestmark = pytest.mark.usefixtures("in_float64")

CPU = Compute(torch.device("cpu"), "float32")  # without autocast
OBJECTIVE = Objective(0.5)
EPS = 1e-2
PAIRS = [
    Pair(0, [5, 6, 7], [8, 9, 2], [10, 11, 12, 13, 2], "stop"),
    Pair(1, [20], [21, 2], [22, 23, 24, 25, 26, 27], "length"),
    Pair(2, [30, 31, 32, 33, 34], [35, 36, 37, 38, 2], [39, 2], "stop"),
    Pair(3, [40, 41], [42, 2], [43, 44, 2], "stop"),
    Pair(4, [50, 51, 52, 53], [54, 55, 2], [56, 57, 58, 2], "stop"),
]


def score(model: Any, micro_batch_size: int) -> list[Score]:
    """All pairs as one global batch."""
    training = TrainingSettings(micro_batch_size=micro_batch_size, global_batch_size=120)
    return list(score_pairs(model, PAIRS, CPU, [range(5)], training))


def scored(model: Any, *shifts: float) -> ScoredPairs:
    """The pairs under the model itself; the first human answers less likely by so many nats."""
    scores = score(model, micro_batch_size=2)
    for place, shift in enumerate(shifts):
        scores[place] = replace(scores[place], ref_actual=scores[place].ref_actual - shift)
    return ScoredPairs(PAIRS, scores, [tuple(range(5))], PairCounts())


def split(*parts: Sequence[int], filling: int = 0) -> list[MicroBatch]:
    """Micro-batches of the given pairs; the first `filling` of all have weight 0."""
    weights = iter([0.0] * filling + [1.0] * 99)
    return [MicroBatch(tuple(part), tuple(next(weights) for _ in part)) for part in parts]


def stepped(backend: TorchBackend, data: ScoredPairs, micros: list[MicroBatch], **changes: Any) -> dict[str, float]:
    return outcome_of(backend, data, micros, **changes).metrics


def outcome_of(backend: TorchBackend, data: ScoredPairs, micros: list[MicroBatch], **changes: Any) -> StepResult:
    arguments: dict[str, Any] = {
        "batch": range(5),
        "objective": OBJECTIVE,
        "lr": 1e-2,
        "is_step_zero": False,
        "where": "step 3",
    }
    return train_single_step(backend, data, micros, **{**arguments, **changes})


def step_bound(model: Any, objective: Objective = OBJECTIVE) -> float:
    """What a metric, a gradient or a reward may differ by between two ways to compute a step.

    Four sums of log-probabilities make a margin, beta times; the steepest loss here is least squares, whose slope
    2 |1 - m| is at most 8 for margins within 3. A gradient goes through the layers twice more, and 41 tokens share it.
    """
    num_tokens = sum(len(pair.actual_ids) + len(pair.generated_ids) for pair in PAIRS)
    return 3 * 8 * max(objective.beta, 1.0) * bounds.of_logprob(model, num_tokens)


def backend_of(model: Any, **settings: Any) -> TorchBackend:
    # eps damps what rounding does to gradients near 0, which AdamW would otherwise scale up to a whole step
    return TorchBackend(model, TrainingSettings.model_validate({"eps": EPS, **settings}), CPU)


def update_bound(gradient_bound: float, lr: float = 1e-2) -> float:
    """Of a weight after AdamW's first step, lr * g / (|g| + eps), whose slope is at most lr / eps."""
    return lr / EPS * gradient_bound


def weights(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: Any, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


SPLITS = [
    split([0, 1, 2, 3, 4]),
    split([0], [1], [2], [3], [4]),
    split([3, 1], [4, 0], [2]),
    split([3, 3, 3, 3], [1, 4, 0, 2], filling=3),
]


@pytest.mark.parametrize("micros", SPLITS[1:], ids=["one by one", "mixed", "filled"])
def test_the_update_does_not_depend_on_the_split_into_micro_batches(
    make_random_llama: Callable[[], Any], micros: list[MicroBatch]
) -> None:
    whole, parts = backend_of(make_random_llama()), backend_of(make_random_llama())
    before = weights(whole.model)
    data = scored(whole.model, 2.0, -1.0, 1.0, -2.0, 3.0)
    expected, found = stepped(whole, data, SPLITS[0]), stepped(parts, data, micros)
    bound = step_bound(whole.model)
    assert found == pytest.approx(expected, abs=bound)
    after = weights(whole.model)
    for name, tensor in weights(parts.model).items():
        torch.testing.assert_close(tensor, after[name], rtol=0.0, atol=update_bound(bound))
    assert max(float((after[name] - before[name]).abs().max()) for name in after) > 1e-3  # it did learn


def test_the_gradient_is_that_of_the_mean_loss_by_finite_differences(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    backend = backend_of(model, gradient_clip_val=0.0)
    data = scored(model, 2.0)
    gradients: dict[str, Tensor] = {}
    backend._optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})
    )
    before = weights(model)
    stepped(backend, data, SPLITS[2])
    name = "model.layers.0.mlp.up_proj.weight"
    direction, h = gradients[name] / gradients[name].norm(), 1e-4
    losses = []
    for sign in (1, -1):
        model.load_state_dict({**before, name: before[name] + sign * h * direction})
        losses.append(stepped(backend_of(model), data, SPLITS[2])["loss"])
    # along the gradient's own direction the slope is the gradient's norm, but for h^2 / 6 times the third derivative,
    # which is below a thousand where weights of 0.2 make all the difference; rounding adds its bound over h
    abs_error = h**2 / 6 * 1e3 + step_bound(model) / h
    assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(float(gradients[name].norm()), abs=abs_error)


def test_an_update_raises_the_margin(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    backend, data = backend_of(model), scored(model)
    first = stepped(backend, data, SPLITS[0], is_step_zero=True)
    second = stepped(backend, data, SPLITS[0])
    assert first["loss"] == pytest.approx(STEP_ZERO_LOSS, abs=step_bound(model))
    assert second["loss"] < first["loss"]
    assert second["rewards_actual_mean"] > second["rewards_generated_mean"]


def test_metrics_by_hand(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    metrics = stepped(backend_of(model), scored(model, 2.0), SPLITS[2])
    bound = step_bound(model)
    # one margin is beta * 2 = 1, four are 0 but for rounding
    assert metrics["loss"] == pytest.approx((math.log1p(math.exp(-1)) + 4 * math.log(2)) / 5, abs=bound)
    assert metrics["rewards_actual_mean"] == pytest.approx(1 / 5, abs=bound)
    assert metrics["rewards_generated_mean"] == pytest.approx(0.0, abs=bound)
    # ten rewards: one 1, nine 0; mean 0.1, squares 0.81 + 9 * 0.01 = 0.9, over 9
    assert metrics["rewards_all_std"] == pytest.approx(math.sqrt(0.1), abs=bound)
    # without beta = 0.5, as NeMo logs them
    for name in ("actual_mean", "generated_mean", "all_mean", "all_std"):
        assert metrics[f"log_ratios_{name}"] == metrics[f"rewards_{name}"] / 0.5
    assert metrics["avg_generated_lengths"] == (5 + 6 + 2 + 3 + 4) / 5
    assert metrics["lr"] == 1e-2
    assert metrics["grad_norm"] > 0.0


@pytest.mark.parametrize("micros", SPLITS, ids=["whole", "one by one", "mixed", "filled"])
def test_each_pair_gets_its_rewards_in_the_order_of_the_batch(
    make_random_llama: Callable[[], Any], micros: list[MicroBatch]
) -> None:
    backend = backend_of(make_random_llama())
    data = scored(backend.model, 2.0, 0.0, -4.0)
    batch = [4, 2, 0, 1, 3]
    found = train_single_step(
        backend, data, micros, batch=batch, objective=Objective(0.5), lr=1e-2, is_step_zero=False, where="step 3"
    ).rewards
    # the policy is the reference, but for the human answers of pairs 0 and 2: 0.5 * 2 and 0.5 * -4
    expected = [(0.0, 0.0), (-2.0, 0.0), (1.0, 0.0), (0.0, 0.0), (0.0, 0.0)]
    assert torch.tensor(found) == pytest.approx(torch.tensor(expected), abs=step_bound(backend.model))


def test_step_zero_accepts_other_micro_batches_than_the_reference_had(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    data = scored(model)
    for micros in SPLITS[1:]:
        model = make_random_llama()
        loss = stepped(backend_of(model), data, micros, is_step_zero=True)["loss"]
        assert loss == pytest.approx(STEP_ZERO_LOSS, abs=step_bound(model))


def test_step_zero_refuses_a_reference_score_that_is_off_and_updates_nothing(
    make_random_llama: Callable[[], Any],
) -> None:
    model = make_random_llama()
    before = weights(model)
    # a margin of 0.5 * 0.01 moves the mean loss by 0.005 / 2 / 5 = 5e-4
    with pytest.raises(StepZeroError, match=r"step 3: the first loss .* is 0\.69264\d, expected ln 2 = 0\.693147"):
        stepped(backend_of(model), scored(model, 0.01), SPLITS[2], is_step_zero=True)
    assert unchanged(model, before)


EVERYTHING = Objective(0.5, "logistic", 0.1, length_normalized=True, sft_weight=0.5, base_weight=0.25)
NCE = Objective(0.5, "nce", mu=2.0)
SFT = Objective(0.5, "sft")
MARGIN_LOSSES = [Objective(0.5, "hinge"), Objective(0.5, "correlation"), Objective(0.5, "least_squares")]
OBJECTIVES = [*MARGIN_LOSSES, NCE, SFT, EVERYTHING]
OBJECTIVE_NAMES = ["hinge", "correlation", "least squares", "nce", "sft", "everything"]


def with_base(data: ScoredPairs) -> ScoredPairs:
    """The pairs with scores of a base model that likes the human answers less and the generated ones more."""
    scores = [
        replace(score, base_actual=score.ref_actual - 3.0, base_generated=score.ref_generated + 1.0)
        for score in data.scores
    ]
    return replace(data, scores=scores)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=OBJECTIVE_NAMES)
@pytest.mark.parametrize("micros", SPLITS[1:], ids=["one by one", "mixed", "filled"])
def test_no_objective_depends_on_the_split_into_micro_batches(
    make_random_llama: Callable[[], Any], micros: list[MicroBatch], objective: Objective
) -> None:
    whole, parts = backend_of(make_random_llama()), backend_of(make_random_llama())
    data = with_base(scored(whole.model, 2.5, -1.0, 1.0, -2.0, 3.0))  # no margin of 1, where hinge has two slopes
    expected = stepped(whole, data, SPLITS[0], objective=objective)
    bound = step_bound(whole.model, objective)
    assert stepped(parts, data, micros, objective=objective) == pytest.approx(expected, abs=bound)
    after = weights(whole.model)
    for name, tensor in weights(parts.model).items():
        torch.testing.assert_close(tensor, after[name], rtol=0.0, atol=update_bound(bound))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=OBJECTIVE_NAMES)
@pytest.mark.parametrize("micros", SPLITS, ids=["whole", "one by one", "mixed", "filled"])
def test_every_objective_has_a_step_zero(
    make_random_llama: Callable[[], Any], micros: list[MicroBatch], objective: Objective
) -> None:
    model = make_random_llama()
    data = with_base(scored(model))
    found = stepped(backend_of(model), data, micros, objective=objective, is_step_zero=True)
    bound = step_bound(model, objective)
    if objective is NCE:  # log(1 + mu) + mu log(1 + 1 / mu): the base's scores do not matter
        data_free = math.log(3.0) + 2.0 * math.log(1.5)
        assert found["loss"] == pytest.approx(data_free, abs=bound)
        return
    if objective is SFT:
        nlls = [-score.ref_actual / len(pair.actual_ids) for pair, score in zip(data.pairs, data.scores, strict=True)]
        assert found["loss"] == pytest.approx(sum(nlls) / 5, abs=bound)
        return
    if objective is not EVERYTHING:
        assert found["loss"] == pytest.approx(1.0, abs=bound)
        return
    # against the base the margin a token is 0.5 * 0.25 * (3 / |y| + 1 / |y'|)
    expected = 0.0
    for pair, score in zip(data.pairs, data.scores, strict=True):
        margin = 0.5 * 0.25 * (3.0 / len(pair.actual_ids) + 1.0 / len(pair.generated_ids))
        expected += 0.9 * math.log1p(math.exp(-margin)) + 0.1 * math.log1p(math.exp(margin))
        expected += 0.5 * -score.ref_actual / len(pair.actual_ids)
    assert found["loss"] == pytest.approx(expected / 5, abs=bound)
    nlls = [-score.ref_actual / len(pair.actual_ids) for pair, score in zip(data.pairs, data.scores, strict=True)]
    assert found["sft_loss"] == pytest.approx(sum(nlls) / 5, abs=bound)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=OBJECTIVE_NAMES)
def test_every_objective_refuses_a_reference_score_that_is_off(
    make_random_llama: Callable[[], Any], objective: Objective
) -> None:
    model = make_random_llama()
    before = weights(model)
    with pytest.raises(
        StepZeroError, match=r"step 3: the first loss .*, expected this objective's loss at the reference, \d"
    ):
        stepped(backend_of(model), with_base(scored(model, 0.1)), SPLITS[2], objective=objective, is_step_zero=True)
    assert unchanged(model, before)


def test_after_step_zero_the_same_scores_are_taken(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    before = weights(model)
    stepped(backend_of(model), scored(model, 0.01), SPLITS[2])
    assert not unchanged(model, before)


@pytest.mark.parametrize("is_step_zero", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_stops_before_the_update(
    make_random_llama: Callable[[], Any], is_step_zero: bool, value: float
) -> None:
    model = make_random_llama()
    data = scored(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    others = {name: tensor for name, tensor in weights(model).items() if "layers.1.mlp.down_proj" not in name}
    with pytest.raises(NonFiniteError, match=r"step 3: the loss is nan\. Nothing was updated"):
        stepped(backend_of(model), data, SPLITS[2], is_step_zero=is_step_zero)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in others.items())


def test_a_gradient_that_is_not_finite_names_its_parameter_and_updates_nothing(
    make_random_llama: Callable[[], Any],
) -> None:
    model = make_random_llama()
    before = weights(model)
    # the loss stays finite: only the way back through this one weight breaks
    model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NonFiniteError, match=r"step 3: the gradient of model\.layers\.0\.mlp\.up_proj\.weight is not"):
        stepped(backend_of(model), scored(model), SPLITS[2])
    assert unchanged(model, before)


def test_a_reference_score_that_is_nan_stops_before_the_update(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    before, data = weights(model), scored(model)
    data = replace(data, scores=[*data.scores[:3], Score(3, math.nan, -1.0, 0, 0), *data.scores[4:]])
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        stepped(backend_of(model), data, SPLITS[2])
    assert unchanged(model, before)


def test_scoring_in_any_micro_batches_gives_the_same_sums_in_the_order_given(
    make_random_llama: Callable[[], Any],
) -> None:
    model = make_random_llama()
    alone = score(model, micro_batch_size=1)
    assert [score.index for score in alone] == [0, 1, 2, 3, 4]
    bound = bounds.of_logprob(model, num_tokens=6)
    for size in (2, 3, 5, 8):
        found = score(model, micro_batch_size=size)
        for one, other in zip(alone, found, strict=True):
            assert other.ref_actual == pytest.approx(one.ref_actual, abs=bound)
            assert other.ref_generated == pytest.approx(one.ref_generated, abs=bound)


def test_scoring_with_a_model_that_is_not_finite_names_the_pairs(make_random_llama: Callable[[], Any]) -> None:
    model = make_random_llama()
    with torch.no_grad():
        model.lm_head.weight[22, 0] = math.nan
    with pytest.raises(NonFiniteError, match="not finite"):
        score(model, micro_batch_size=2)


def test_the_answers_of_a_pair_are_the_humans_first() -> None:
    found = all_answers(PAIRS[:2])
    assert [[list(answer) for answer in group.answers] for group in found] == [
        [[8, 9, 2], [10, 11, 12, 13, 2]],
        [[21, 2], [22, 23, 24, 25, 26, 27]],
    ]
    assert [list(group.prompt_ids) for group in found] == [[5, 6, 7], [20]]
