"""Loading of models for scoring: one batch layout and attention for reference, policy and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.loss import AnswerLogprobs
from spin_components.algorithm.packing import Prompted
from spin_components.algorithm.schedules import resolve_count
from spin_components.data.shards import AnswerLoss, Pair, Prompt
from spin_components.errors import NonFiniteError
from spin_components.model.batch_layout import check_padded, pack_where_it_fits
from spin_components.model.compute import Compute
from spin_components.model.families import check_family
from spin_components.model.frozen import FrozenLoader
from spin_components.model.loading import load_model
from spin_components.model.lora.merging import load_layered
from spin_components.settings.run import ValidationSettings
from spin_components.settings.settings import Settings


def load_scored(folder: Path, settings: Settings, compute: Compute, loader: FrozenLoader | None = None) -> Any:
    """Load a model for computing log-probabilities, with packed attention where settings and architecture allow it.

    Args:
        folder: as returned by `model.stored.open_scored`.
        settings: of the run.
        compute: device and precision.
        loader: of a model that is not trained; None for one that is, with float32 weights. Not used for 4-bit weights.

    Raises:
        ModelError: it cannot be loaded or its answers cannot be scored, or `training.packing` is "on" and the
            architecture does not support packing.
    """
    if settings.lora.is_quantized:
        model = load_layered(folder, settings, compute.device, compute.precision)
    else:
        model = (
            loader.load(folder, settings.model) if loader else load_model(folder, settings.model, device=compute.device)
        )
    check_family(model)
    if pack_where_it_fits(model, settings.training, compute):
        return model
    if not settings.lora.is_quantized:  # quantized layers round by more than what this would find
        check_padded(model, compute.device)
    return model


def all_answers(pairs: Sequence[Pair]) -> list[Prompted]:
    """Each pair's prompt with the human answer, the generated one and, if there is one, the proto answer."""
    return [Prompted(pair.prompt_ids, pair.answers) for pair in pairs]


def pair_logprobs(model: nn.Module, pairs: Sequence[Pair], device: torch.device | str = "cpu") -> AnswerLogprobs:
    """Log-probabilities of the answers of B pairs, each (B,) float32; see `algorithm.logprobs.answer_logprobs`."""
    groups = all_answers(pairs)
    logprobs = torch.split(answer_logprobs(model, groups, device), [len(group.answers) for group in groups])
    return AnswerLogprobs(*pad_sequence(list(logprobs), batch_first=True).unbind(-1))


def validation_batches(prompts: Sequence[Prompt], settings: ValidationSettings) -> list[list[Prompt]]:
    """Batches of held-out records of similar length, limited by `limit_val_batches`.

    A last batch of one record joins the batch before it, so that no forward pass is for one record alone.
    """
    size = settings.batch_size
    num = resolve_count(settings.limit_val_batches, -(-len(prompts) // size))
    chosen = sorted(prompts[: num * size], key=lambda prompt: len(prompt.prompt_ids) + len(prompt.actual_ids))
    batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def answer_losses(
    model: Any, batches: Sequence[Sequence[Prompt]], compute: Compute, *, finite: bool = True
) -> Iterator[list[AnswerLoss]]:
    """Yield the losses of each batch.

    Args:
        model: the policy.
        batches: held-out records.
        compute: device and precision.
        finite: whether a loss that is not finite is an error.

    Raises:
        NonFiniteError: with `finite`, a loss is NaN or infinite.
    """
    for batch in batches:
        answered = [Prompted(prompt.prompt_ids, (prompt.actual_ids,)) for prompt in batch]
        # not inference mode: under ZeRO-3 training could not use weights that were gathered in it
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
    """log pi(answer | prompt) in nats, summed over tokens, of sampled answers.

    Args:
        model: the policy.
        groups: prompts with as many answers each.
        settings: batch size.
        compute: device and precision.

    Returns: one list a group, in the order given.
    """
    order = sorted(range(len(groups)), key=lambda i: sum(map(len, (groups[i].prompt_ids, *groups[i].answers))))
    by_group: dict[int, list[float]] = {}
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        with torch.no_grad(), compute.autocast():
            logprobs = answer_logprobs(model, [groups[i] for i in batch], compute.device)
        by_group |= zip(batch, logprobs.view(len(batch), -1).tolist(), strict=True)
    return [by_group[i] for i in range(len(groups))]


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
    """`mean_nll` with the batches divided among ranks; ZeRO-3 needs as many forward passes on every rank.

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
    for (_, weight), batch_losses in zip(mine, losses, strict=True):
        nll, num_tokens = sum(loss.nll for loss in batch_losses), sum(loss.num_tokens for loss in batch_losses)
        sums += weight * torch.tensor([nll, num_tokens])
    total_nll, total_tokens = reduce(sums.to(compute.device)).tolist()
    return float(total_nll / total_tokens)
