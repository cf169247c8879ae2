"""Answers that a policy samples to held-out prompts, and their statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from spin_components.algorithm.answer_stats import distinct, length_ratio, repetition_rate, spin_margins
from spin_components.algorithm.batching import derive_seed
from spin_components.data.shards import AnswerLoss, Prompt, Sample, read_rows
from spin_components.engine.engine import Sampling
from spin_components.errors import IntegrityError
from spin_components.model.stored import validated_epoch
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import Manifest, read_manifest


@dataclass(frozen=True, slots=True)
class Reference:
    """Results of the reference on the held-out prompts.

    Attributes:
        nll: of the human answers, by index.
        samples: the reference's own answers, by index.
    """

    nll: dict[int, float]
    samples: dict[int, Sample]


def reference_validation(run: RunStore, reference_uri: str) -> Manifest | None:
    """Manifest of the reference's validation; None for the base model, which has no reference."""
    return read_manifest(run, layout.validation(*validated_epoch(run, reference_uri))) if reference_uri else None


def read_reference(run: RunStore, reference_uri: str) -> Reference:
    """Fetch and verify the results of the reference's validation.

    Raises:
        IntegrityError: a file is missing or altered, or the reference was validated without samples.
    """
    epoch = validated_epoch(run, reference_uri)
    key, outputs = layout.validation(*epoch), read_manifest(run, layout.validation(*epoch)).outputs
    losses, samples = layout.validation_losses(*epoch), layout.validation_samples(*epoch)
    if samples not in outputs:
        raise IntegrityError(f"{run.uri_of(key)} names no samples; delete it to have the reference validated again")
    folder = run.fetch(outputs, what="the reference's validation", made_by=key)
    return Reference(
        {row.index: row.nll for row in read_rows(folder / losses, AnswerLoss)},
        {row.index: row for row in read_rows(folder / samples, Sample)},
    )


def chosen_prompts(prompts: Sequence[Prompt], batches: Sequence[Sequence[Prompt]], num_samples: int) -> list[Prompt]:
    """The first `num_samples` prompts of the batches; `validation.limit_val_batches` may leave some out of them."""
    counted = {prompt.index for batch in batches for prompt in batch}
    return [prompt for prompt in prompts if prompt.index in counted][:num_samples]


def sampling_of(run: RunStore, settings: Settings) -> Sampling:
    """Sampling of held-out answers, with the settings of iteration 0.

    The seed follows from the run's seed and the held-out data alone, so it is the same for every policy.
    """
    data = read_manifest(run, layout.DATA_MANIFEST)
    seed = derive_seed(settings.run.seed, "validate", data.outputs[layout.VALIDATION].sha256)
    return Sampling(settings.generation.at(0), data.facts["eos_ids"], seed)


def answer_stats(samples: Sequence[Sample], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Lengths, repetition and diversity of sampled answers.

    Args:
        samples: of the policy.
        prompts: of the samples, in the same order.
    """
    answers = [sample.generated_ids for sample in samples]
    return {
        "num_samples": len(samples),
        "mean_sampled_tokens": round(fmean(map(len, answers)), 2),
        "length_ratio": round(length_ratio(answers, [prompt.actual_ids for prompt in prompts]), 4),
        "repetition_rate": round(repetition_rate(answers), 4),
        "distinct_1": round(distinct(answers, 1), 4),
        "distinct_2": round(distinct(answers, 2), 4),
        "cut_share": round(sum(sample.finish_reason == "length" for sample in samples) / len(samples), 4),
    }


def margin_stats(
    samples: Sequence[Sample], losses: Sequence[AnswerLoss], reference: Reference, beta: float
) -> dict[str, Any]:
    """Mean SPIN margin on held-out pairs, and the share of pairs with a positive one; None if a margin is not finite.

    Args:
        samples: of the policy.
        losses: of the human answers under the policy.
        reference: results of the iteration's reference.
        beta: `ref_policy_kl_penalty` of the iteration.
    """
    nll = {loss.index: loss.nll for loss in losses}
    margins = spin_margins(
        [-nll[sample.index] for sample in samples],
        [-reference.nll[sample.index] for sample in samples],
        [sample.logprob_of_reference_sample for sample in samples],
        [reference.samples[sample.index].logprob for sample in samples],
        beta,
    )
    if not all(map(math.isfinite, margins)):
        return {"spin_margin": None, "spin_acc": None}
    return {"spin_margin": fmean(margins), "spin_acc": sum(margin > 0 for margin in margins) / len(margins)}
