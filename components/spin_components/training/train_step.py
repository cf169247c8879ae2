"""One optimizer step, of SPIN (arXiv:2401.01335) or on the human answers alone: forward and backward over
micro-batches, checks, clip, update.

Shapes: N pairs in the global batch, B pairs in a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from spin_components.algorithm.batching import MicroBatch
from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.loss import (
    STEP_ZERO_LOSS,
    STEP_ZERO_TOLERANCE,
    AnswerLengths,
    AnswerLogprobs,
    Objective,
    PairTerms,
    Rewards,
    opponent_logprobs,
    pair_terms,
)
from spin_components.algorithm.metrics import METRIC_SUMS, log_ratios_from_rewards, metric_sums, metrics_from_sums
from spin_components.algorithm.packing import Prompted
from spin_components.data.shards import Pair, Score
from spin_components.errors import NonFiniteError, StepZeroError
from spin_components.model.scoring import pair_logprobs
from spin_components.record.pairs import ScoredPairs
from spin_components.training.backend import Backend


class StepResult(NamedTuple):
    """The result of one optimizer step.

    Attributes:
        metrics: those of `algorithm.metrics`: `metrics_from_sums` and `log_ratios_from_rewards`, with `grad_norm` and
            `lr`; without generated answers the loss alone of the former.
        rewards: of the human and the generated answer of each pair, in the order of the global batch.
    """

    metrics: dict[str, float]
    rewards: list[tuple[float, float]]


def train_single_step(
    backend: Backend,
    data: ScoredPairs,
    micro_batches: Sequence[MicroBatch],
    *,
    batch: Sequence[int],
    objective: Objective,
    lr: float,
    is_step_zero: bool,
    where: str,
) -> StepResult:
    """Train on one global batch.

    Args:
        backend: this rank; its gradients are zero.
        data: all pairs of the iteration; without scores, the human answers alone.
        micro_batches: this rank's share of the batch.
        batch: indices of the pairs of the whole global batch.
        objective: of the iteration.
        lr: learning rate of this step.
        is_step_zero: whether no update of the iteration has been made, so that policy and reference are one model and
            the loss is known: ln 2, or what the objective gives for the reference's own log-probabilities.
        where: named in errors, e.g. "iteration 0, epoch 0, step 3".

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite; nothing was updated.
        StepZeroError: the first loss is not the known one; nothing was updated.
    """
    device = backend.compute.device
    sums = torch.zeros(len(METRIC_SUMS), dtype=torch.float64, device=device)
    loss_at_reference = torch.zeros(1, dtype=torch.float64, device=device)  # the loss if the policy were the reference
    rewards = torch.zeros(len(batch), 2, dtype=torch.float64, device=device)  # (N, 2): actual, generated
    row_of = {pair: row for row, pair in enumerate(batch)}
    for number, micro in enumerate(micro_batches, start=1):
        if micro.is_filling and not backend.needs_filling:
            continue
        pairs = [data.pairs[i] for i in micro.pairs]  # B
        if not data.scores:
            terms = _human_terms(backend, pairs)
            weights = torch.tensor(micro.weights, device=device)  # (B,)
            backend.backward((terms.losses * weights).sum() / len(batch), is_last=number == len(micro_batches))
            sums += metric_sums(terms, torch.zeros_like(weights), weights)
            continue
        reference, opponent = _fixed_logprobs([data.scores[i] for i in micro.pairs], objective, device)  # each (B,)
        lengths = _answer_lengths(pairs, device)  # each (B,)
        weights = torch.tensor(micro.weights, device=device)  # (B,)
        with backend.compute.autocast():
            policy = pair_logprobs(backend.model, pairs, device)  # each (B,)
        terms = pair_terms(policy, opponent, lengths, objective)  # each (B,)
        backend.backward((terms.losses * weights).sum() / len(batch), is_last=number == len(micro_batches))
        sums += metric_sums(terms, lengths.generated, weights)
        if is_step_zero:
            losses = pair_terms(reference, opponent, lengths, objective).losses  # (B,)
            loss_at_reference += (losses.double() * weights).sum() / len(batch)
        rows = torch.tensor([row_of[i] for i in micro.pairs], device=device)
        rewards.index_add_(0, rows, (torch.stack(terms.rewards, -1).detach() * weights[:, None]).double())
    total = backend.reduce_sum(torch.cat([sums, loss_at_reference, rewards.flatten()]))
    metrics = metrics_from_sums(
        total[: len(sums)], with_sft=bool(objective.sft_weight), with_advantages=objective.loss == "triplet"
    )
    _check_finite(metrics["loss"], where)
    if is_step_zero and data.scores:
        expected_loss = STEP_ZERO_LOSS if objective.begins_at_ln_2 else float(total[len(sums)])
        tolerance = STEP_ZERO_TOLERANCE[backend.compute.precision]
        tolerance *= max(1.0, abs(expected_loss), objective.step_zero_scale)
        _check_step_zero(metrics["loss"], expected_loss, tolerance, backend.compute.precision, where)
    if name := backend.check_gradients():
        raise NonFiniteError(
            f"{where}: the gradient of {name} is not finite, the loss was {metrics['loss']}. Nothing was updated. "
            "Lower training.lr, or set training.precision = 'float32'"
        )
    grad_norm = backend.clip_and_step(lr)  # and zero the gradients
    if not data.scores:
        return StepResult({"loss": metrics["loss"], "grad_norm": grad_norm, "lr": lr}, [])
    by_pair = [(actual, generated) for actual, generated in total[len(sums) + 1 :].view(-1, 2).tolist()]
    log_ratios = log_ratios_from_rewards(metrics, objective.beta)
    return StepResult({**metrics, **log_ratios, "grad_norm": grad_norm, "lr": lr}, by_pair)


def _human_terms(backend: Backend, pairs: Sequence[Pair]) -> PairTerms:
    """Negative log-likelihood a token of each human answer, as the only term; each (B,)."""
    device = backend.compute.device
    with backend.compute.autocast():
        answered = [Prompted(pair.prompt_ids, (pair.actual_ids,)) for pair in pairs]
        logprobs = answer_logprobs(backend.model, answered, device)  # (B,)
    nll = -logprobs / torch.tensor([len(pair.actual_ids) for pair in pairs], device=device)
    return PairTerms(nll, Rewards(torch.zeros_like(nll), torch.zeros_like(nll)), nll)


def _fixed_logprobs(
    scores: Sequence[Score], objective: Objective, device: torch.device
) -> tuple[AnswerLogprobs, AnswerLogprobs]:
    """Log-probabilities under the reference, and under the opponent: the reference, or its mixture with the base."""
    reference = AnswerLogprobs(
        torch.tensor([score.ref_actual for score in scores], device=device),
        torch.tensor([score.ref_generated for score in scores], device=device),
        _proto_logprobs(scores, device),
    )
    if not objective.base_weight:
        return reference, reference
    base = AnswerLogprobs(
        torch.tensor([score.base_actual for score in scores], device=device),
        torch.tensor([score.base_generated for score in scores], device=device),
    )
    return reference, opponent_logprobs(reference, base, objective.base_weight)


def _proto_logprobs(scores: Sequence[Score], device: torch.device) -> torch.Tensor | None:
    """Log-probabilities of the proto answers, 0 for none, (B,); None where the objective uses none."""
    logprobs = [score.ref_proto for score in scores if score.ref_proto is not None]
    if not logprobs:
        return None
    return torch.tensor([0.0 if math.isnan(logprob) else logprob for logprob in logprobs], device=device)


def _answer_lengths(pairs: Sequence[Pair], device: torch.device) -> AnswerLengths:
    return AnswerLengths(
        torch.tensor([len(pair.actual_ids) for pair in pairs], device=device),
        torch.tensor([len(pair.generated_ids) for pair in pairs], device=device),
        torch.tensor([len(pair.proto_ids or ()) for pair in pairs], device=device),
    )


def _check_finite(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"{where}: the loss is {loss}. Nothing was updated. Lower training.lr, or look at the data"
        )


def _check_step_zero(loss: float, expected: float, tolerance: float, precision: str, where: str) -> None:
    if abs(loss - expected) > tolerance:
        name = "ln 2 =" if expected == STEP_ZERO_LOSS else "this objective's loss at the reference,"
        raise StepZeroError(
            f"{where}: the first loss of the iteration is {loss:.6f}, expected {name} {expected:.6f} within "
            f"{tolerance:g} in {precision}. Policy and reference must agree before the first update, so one of these "
            "differs between ref-logprob and training: the weights, the token ids, the masks, the attention kernel, "
            "or the precision. Nothing was updated"
        )
