"""What a policy answers to held-out prompts by itself: sampled, scored, and told in a few figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from spin_components.algorithm.degeneration import distinct, length_ratio, repetition_rate, spin_margins
from spin_components.algorithm.order import derive_seed
from spin_components.data.shards import AnswerLoss, Prompt, Sample, read_rows
from spin_components.device import Compute
from spin_components.errors import EngineError, IntegrityError
from spin_components.events import Progress
from spin_components.execution import Step
from spin_components.generate.engine import Answer, Sampling, open_engine
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.manifests import Manifest, read_manifest
from spin_components.store.models import validated_place
from spin_components.store.run import RunStore

_ENGINE = "transformers"
"""So few answers are not worth vLLM's start, and this one gives the same answers for the same seed."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The model that an iteration began from, on the held-out prompts.

    Attributes:
        nll: of the human answers, by index.
        samples: its own answers, by index.
    """

    nll: dict[int, float]
    samples: dict[int, Sample]


def reference_check(run: RunStore, reference_uri: str) -> Manifest | None:
    """The manifest of the reference's own validation; None where there is no reference: of the base model."""
    return read_manifest(run, layout.validation(*validated_place(run, reference_uri))) if reference_uri else None


def read_reference(run: RunStore, reference_uri: str) -> Reference:
    """Fetch and check what the reference's validation left.

    Raises:
        IntegrityError: a file is missing or altered, or the reference was validated without samples.
    """
    place = validated_place(run, reference_uri)
    key, outputs = layout.validation(*place), read_manifest(run, layout.validation(*place)).outputs
    losses, samples = layout.validation_losses(*place), layout.validation_samples(*place)
    if samples not in outputs:
        raise IntegrityError(f"{run.uri_of(key)} names no samples; delete it to have the reference validated again")
    folder = run.fetch(outputs, what="the reference's validation", made_by=key)
    return Reference(
        {row.index: row.nll for row in read_rows(folder / losses, AnswerLoss)},
        {row.index: row for row in read_rows(folder / samples, Sample)},
    )


def chosen_prompts(prompts: Sequence[Prompt], losses: Sequence[AnswerLoss], num_samples: int) -> list[Prompt]:
    """The first prompts of those whose human answers count."""
    counted = {loss.index for loss in losses}
    return [prompt for prompt in prompts if prompt.index in counted][:num_samples]


def sample_answers(
    current: Step, settings: Settings, compute: Compute, folder: Path, prompts: Sequence[Prompt], data_sha256: str
) -> list[Answer]:
    """One answer to each prompt, sampled as `generate` does in iteration 0.

    The seed follows from the run's and from the held-out data alone, so every policy is dealt the same.

    Args:
        current: the running step, to report to.
        settings: of the run.
        compute: device and precision.
        folder: of the policy.
        prompts: to answer.
        data_sha256: of the held-out data.
    """
    eos_ids = read_manifest(current.run, layout.DATA_MANIFEST).facts["eos_ids"]
    seed = derive_seed(settings.run.seed, "validate", data_sha256)
    sampling = Sampling(settings.generation.at(0), eos_ids, seed)
    most, room = settings.generation.max_new_tokens, settings.data.max_length
    limits = [min(most, room - len(prompt.prompt_ids)) for prompt in prompts]
    progress = Progress(current.events, len(prompts), "samples")
    answers: dict[int, Answer] = {}
    engine = open_engine(_ENGINE, folder, settings.model, sampling, compute)
    try:
        for place, answer in engine.generate([prompt.prompt_ids for prompt in prompts], limits):
            answers[place] = answer
            progress.update(len(answers))
    finally:
        engine.close()
    if len(answers) != len(prompts):
        raise EngineError(f"the {engine.name} engine returned {len(answers)} answers for {len(prompts)} prompts")
    return [answers[place] for place in range(len(prompts))]


def figures(samples: Sequence[Sample], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Lengths, repetition and variety of sampled answers; `prompts` are theirs, in the same order."""
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


def margin_figures(
    samples: Sequence[Sample], losses: Sequence[AnswerLoss], reference: Reference, beta: float
) -> dict[str, Any]:
    """Mean SPIN margin on held-out pairs, and the share of pairs told apart; None where a number is not finite.

    Args:
        samples: of the policy.
        losses: of the policy, on the human answers.
        reference: what the policy is held against.
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
