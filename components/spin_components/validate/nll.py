"""Negative log-likelihood of human answers, by the same code that scores answers in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import Prompted
from spin_components.algorithm.schedules import resolve_count
from spin_components.data.shards import AnswerLoss, Prompt
from spin_components.device import Compute
from spin_components.errors import NonFiniteError
from spin_components.settings import ValidationSettings


def validation_batches(prompts: Sequence[Prompt], settings: ValidationSettings) -> list[list[Prompt]]:
    """The held-out records that count, `limit_val_batches` observed, in batches alike in length.

    A single answer left over joins the batch before it, so that ranks stay in step; see `answer_logprobs`.
    """
    size = settings.batch_size
    num = resolve_count(settings.limit_val_batches, -(-len(prompts) // size))
    chosen = sorted(prompts[: num * size], key=lambda prompt: len(prompt.prompt_ids) + len(prompt.actual_ids))
    batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]  # a batch of one makes one forward pass, any other two
    return batches


def answer_losses(
    model: Any, batches: Sequence[Sequence[Prompt]], compute: Compute, *, finite: bool = True
) -> Iterator[list[AnswerLoss]]:
    """Yield each batch's losses as they are computed.

    Args:
        model: the policy.
        batches: held-out records.
        compute: device and precision.
        finite: whether losses must be; where not, a destroyed policy can be told by them.

    Raises:
        NonFiniteError: a loss is NaN or infinite, and must not be.
    """
    for batch in batches:
        answered = [Prompted(prompt.prompt_ids, (prompt.actual_ids,)) for prompt in batch]
        # not inference mode: under ZeRO-3 the gathered weights would be of no use to the training that goes on
        with torch.no_grad(), compute.autocast():
            nlls = (-answer_logprobs(model, answered, compute.device)).tolist()
        losses = [
            AnswerLoss(prompt.index, nll, len(prompt.actual_ids)) for prompt, nll in zip(batch, nlls, strict=True)
        ]
        if finite and (bad := [loss.index for loss in losses if not abs(loss.nll) < float("inf")]):
            raise NonFiniteError(f"the policy's loss on the validation records {bad} is not finite; lower training.lr")
        yield losses


def sampled_logprobs(
    model: Any, groups: Sequence[Prompted], settings: ValidationSettings, compute: Compute
) -> list[list[float]]:
    """log pi(answer | prompt) in nats, summed over tokens, of other answers than the human's: as many for each prompt.

    Returns: those of each group, in the order given.
    """
    order = sorted(
        range(len(groups)), key=lambda place: sum(map(len, (groups[place].prompt_ids, *groups[place].answers)))
    )
    found: dict[int, list[float]] = {}
    for start in range(0, len(order), settings.batch_size):
        places = order[start : start + settings.batch_size]
        with torch.no_grad(), compute.autocast():
            logprobs = answer_logprobs(model, [groups[place] for place in places], compute.device)
        found |= zip(places, logprobs.view(len(places), -1).tolist(), strict=True)
    return [found[place] for place in range(len(groups))]


def mean_nll(losses: Sequence[AnswerLoss]) -> float:
    """Mean over answer tokens, in nats: `val_loss`."""
    return sum(loss.nll for loss in losses) / sum(loss.num_tokens for loss in losses)


def distributed_val_loss(
    model: Any,
    batches: Sequence[Sequence[Prompt]],
    compute: Compute,
    *,
    rank: int,
    ranks: int,
    reduce: Callable[[Tensor], Tensor],
) -> float:
    """`mean_nll` with the batches shared among ranks; every rank makes as many forward passes, as ZeRO-3 needs.

    Args:
        model: the policy, on every rank.
        batches: the same list on every rank.
        compute: device and precision.
        rank: this rank, of `ranks`.
        ranks: how many.
        reduce: sums a tensor over ranks.
    """
    mine = [(batch, 1.0) for batch in batches[rank::ranks]]
    rounds = -(-len(batches) // ranks)
    mine += [(batches[0], 0.0)] * (rounds - len(mine))
    sums = torch.zeros(2, dtype=torch.float64)
    losses = answer_losses(model, [batch for batch, _ in mine], compute)
    for (_, weight), found in zip(mine, losses, strict=True):
        sums += weight * torch.tensor([sum(loss.nll for loss in found), sum(loss.num_tokens for loss in found)])
    total_nll, total_tokens = reduce(sums.to(compute.device)).tolist()
    return float(total_nll / total_tokens)
