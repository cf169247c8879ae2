"""One optimizer step: zero grad, forward and backward over micro-batches, check, clip, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.loss import (
    METRIC_SUMS,
    STEP_ZERO_LOSS,
    STEP_ZERO_TOLERANCE,
    AnswerLogprobs,
    metric_sums,
    metrics_from_sums,
    rewards,
    spin_losses,
)
from spin_components.algorithm.order import MicroBatch
from spin_components.errors import NonFiniteError, StepZeroError
from spin_components.ref_logprob.step import both_answers
from spin_components.train_epoch.backend import Backend
from spin_components.train_epoch.pairs import ScoredPairs


class StepOutcome(NamedTuple):
    """What a step gives.

    Attributes:
        metrics: those of `algorithm.loss.metrics_from_sums`, with `grad_norm` and `lr`.
        rewards: of the human's and the generated answer of each pair, in the order of the global batch.
    """

    metrics: dict[str, float]
    rewards: list[tuple[float, float]]


def train_single_step(
    backend: Backend,
    data: ScoredPairs,
    micro_batches: Sequence[MicroBatch],
    *,
    batch: Sequence[int],
    beta: float,
    lr: float,
    is_step_zero: bool,
    where: str,
) -> StepOutcome:
    """Take one global batch.

    Args:
        backend: this rank.
        data: all pairs of the iteration.
        micro_batches: this rank's share.
        batch: places of the pairs of the whole global batch.
        beta: `ref_policy_kl_penalty` of the iteration.
        lr: of this step.
        is_step_zero: whether no update of the iteration has been made, so that the loss must be ln 2.
        where: named in errors, e.g. "iteration 0, epoch 0, step 3".

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite; nothing was updated.
        StepZeroError: the first loss is not ln 2; nothing was updated.
    """
    device = backend.compute.device
    sums = torch.zeros(len(METRIC_SUMS), dtype=torch.float64, device=device)
    each = torch.zeros(len(batch), 2, dtype=torch.float64, device=device)  # (pairs of the batch, actual and generated)
    row_of = {place: row for row, place in enumerate(batch)}
    for micro in micro_batches:
        if micro.is_filling and not backend.needs_filling:
            continue
        pairs = [data.pairs[index] for index in micro.pairs]  # B
        reference = AnswerLogprobs(
            torch.tensor([data.scores[index].ref_actual for index in micro.pairs], device=device),
            torch.tensor([data.scores[index].ref_generated for index in micro.pairs], device=device),
        )
        weights = torch.tensor(micro.weights, device=device)  # (B,)
        lengths = torch.tensor([len(pair.generated_ids) for pair in pairs], device=device)
        with backend.compute.autocast():
            policy = AnswerLogprobs(*answer_logprobs(backend.model, both_answers(pairs), device).view(-1, 2).unbind(-1))
        reward = rewards(policy, reference, beta)
        backend.backward((spin_losses(reward) * weights).sum() / len(batch))
        sums += metric_sums(reward, lengths, weights)
        rows = torch.tensor([row_of[place] for place in micro.pairs], device=device)
        each.index_add_(0, rows, (torch.stack(reward, -1).detach() * weights[:, None]).double())
    total = backend.reduce_sum(torch.cat([sums, each.flatten()]))
    metrics = metrics_from_sums(total[: len(sums)])
    _check_loss(metrics["loss"], backend.compute.precision, is_step_zero, where)
    if name := backend.check_gradients():
        raise NonFiniteError(
            f"{where}: the gradient of {name} is not finite, the loss was {metrics['loss']}. Nothing was updated. "
            "Lower training.lr, or set training.precision = 'float32'"
        )
    found: list[list[float]] = total[len(sums) :].view(-1, 2).tolist()
    return StepOutcome(
        {**metrics, "grad_norm": backend.apply(lr), "lr": lr}, [(actual, generated) for actual, generated in found]
    )


def _check_loss(loss: float, precision: str, is_step_zero: bool, where: str) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"{where}: the loss is {loss}. Nothing was updated. Lower training.lr, or look at the data"
        )
    tolerance = STEP_ZERO_TOLERANCE[precision]
    if is_step_zero and abs(loss - STEP_ZERO_LOSS) > tolerance:
        raise StepZeroError(
            f"{where}: the first loss of the iteration is {loss:.6f}, expected ln 2 = {STEP_ZERO_LOSS:.6f} within "
            f"{tolerance:g} in {precision}. Policy and reference must agree before the first update, so one of these "
            "differs between ref-logprob and training: the weights, the token ids, the masks, the attention kernel, "
            "or the precision. Nothing was updated"
        )
