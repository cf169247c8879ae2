"""Validate the policy that an epoch ended with, and the base model once."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from spin_components.data.shards import (
    GREEDY,
    SAMPLED,
    AnswerLoss,
    AnswerMeasures,
    Prompt,
    Sample,
    read_rows,
    write_rows,
)
from spin_components.errors import NonFiniteError
from spin_components.memory.processes import divide
from spin_components.model.batch_layout import resolve_packing
from spin_components.model.compute import Compute, num_visible_gpus, resolve_compute, set_threads
from spin_components.model.folder import load_tokenizer
from spin_components.model.frozen import WholeLoader
from spin_components.model.scoring import mean_nll, validation_batches
from spin_components.model.stored import model_digest, open_model, open_scored, validated_epoch
from spin_components.record.decisions import name_of
from spin_components.record.pointers import is_over
from spin_components.report.page import refresh
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import digest_of
from spin_components.store.manifests import read_manifest
from spin_components.tracking.tracker import branch_of
from spin_components.training.epoch import delete_control
from spin_components.validate.measures import length_warning, mean_measures, measure_answers
from spin_components.validate.policy import decodings, human_losses, sample_answers, score_samples
from spin_components.validate.ranks import Measured, measure_in_ranks
from spin_components.validate.samples import (
    Reference,
    answer_stats,
    chosen_prompts,
    margin_stats,
    read_reference,
    reference_validation,
    sampling_of,
)

logger = logging.getLogger(__name__)


def validate(
    run_uri: str,
    iteration: int,
    epoch: int,
    policy_uri: str,
    hardware: dict[str, Any] | None = None,
    reference_uri: str = "",
) -> str:
    """Measure a policy's loss on the held-out human answers, and statistics of the answers that it samples itself.

    Args:
        run_uri: the run.
        iteration: t, `layout.BASE`, `layout.WARM_UP`, or that of a control.
        epoch: within the iteration; of the warm-up and of a control it follows from the policy.
        policy_uri: what to validate; empty when the attempt has stopped.
        hardware: `[hardware]`; None for what `prepare` recorded for the attempt.
        reference_uri: the reference of the iteration, for the SPIN margin; empty for the base model, which has none.

    Returns: `policy_uri`, or empty when the attempt's time is up.

    Raises:
        NonFiniteError: the base model's loss is not finite. A policy's may be; it is then never chosen.
    """
    with Step.begin("validate", run_uri, hardware, after=[policy_uri], iteration=iteration, epoch=epoch) as step:
        if iteration < layout.BASE and not step.is_stopped:
            iteration, epoch = validated_epoch(step.run, policy_uri)  # the base model where the warm-up lowered no loss
            step.is_last |= layout.controlled(iteration) is not None and is_over(step.run)
        key = layout.validation(iteration, epoch)
        if step.is_due(key, lambda: _inputs(step, iteration, policy_uri, reference_uri)):
            settings = step.settings
            set_threads(settings.hardware)
            compute = resolve_compute(settings.hardware, settings.training.precision)
            prompts = _read_prompts(step.run)
            folder = open_scored(step.run, policy_uri, what="the policy")
            batches = validation_batches(prompts, settings.validation)
            chosen = chosen_prompts(prompts, batches, settings.validation.num_samples)
            reference = read_reference(step.run, reference_uri) if reference_uri and chosen else None
            plain = folder
            if settings.lora.is_quantized and chosen:
                plain = open_model(step.run, policy_uri, what="the policy")
            measured = _measured(step, compute, folder, plain, batches, chosen, reference)
            losses = measured.losses
            mean = mean_nll(losses)
            if not math.isfinite(mean) and iteration == layout.BASE:
                raise NonFiniteError(f"the base model's loss on the held-out answers is {mean}; look at its weights")
            facts: dict[str, Any] = {"val_loss": mean if math.isfinite(mean) else None, "num_answers": len(losses)}
            with step.write(layout.validation_losses(iteration, epoch)) as path:
                write_rows(path, AnswerLoss, losses)
            if measured.samples:
                samples = measured.samples
                facts |= answer_stats(samples, chosen) | _measure(step, key, plain, chosen, measured)
                if reference:
                    facts |= margin_stats(samples, losses, reference, settings.spin.beta(iteration))
                with step.write(layout.validation_samples(iteration, epoch)) as path:
                    write_rows(path, Sample, samples)
            first = layout.WARM_UP if settings.warm_up.is_on else layout.BASE
            if iteration == first and (warning := length_warning(facts, settings.selection, name_of(iteration))):
                step.warn(warning)
            numbers = {name: value for name, value in facts.items() if value is not None}
            step.track("validation", _global_step(step.run, iteration, epoch), numbers, branch_of(iteration))
            step.publish({**facts, "policy_uri": policy_uri})
            logger.info("val_loss %.4f on %d answers", mean, len(losses))
            if layout.controlled(iteration) is not None:
                refresh(step.run, step.warn)  # an iteration's checkpoint does that
        if not step.is_stopped and (of := layout.controlled(iteration)) is not None:
            delete_control(step, of)
        return step.returns(policy_uri)


def _measure(step: Step, key: str, folder: Path, prompts: list[Prompt], measured: Measured) -> dict[str, Any]:
    """Measure and store the policy's answers; returns the means."""
    tokenizer = load_tokenizer(folder, step.settings.model)

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    by_decoding = [
        measure_answers(decoding, prompts, answers, decode)
        for decoding, answers in ((SAMPLED, measured.sampled), (GREEDY, measured.greedy))
    ]
    with step.write(layout.measures_of(key)) as path:
        write_rows(path, AnswerMeasures, [row for rows in by_decoding for row in rows])
    return {name: value for rows in by_decoding for name, value in mean_measures(rows).items()}


def _inputs(step: Step, iteration: int, policy_uri: str, reference_uri: str) -> dict[str, Any]:
    """What the policy's validation depends on."""
    run, settings = step.run, step.settings
    compute = resolve_compute(settings.hardware, settings.training.precision)
    inputs = {
        "policy": model_digest(run, policy_uri),
        "data": read_manifest(run, layout.DATA_MANIFEST).outputs[layout.VALIDATION].sha256,
        "validation.limit_val_batches": repr(settings.validation.limit_val_batches),
        "validation.batch_size": settings.validation.batch_size,
        "validation.num_samples": settings.validation.num_samples,
        "precision": compute.precision,
        "packing": resolve_packing(settings.training),
    }
    if not settings.validation.num_samples:
        return inputs
    generation = settings.generation.at(0).model_copy(update={"block_size": 0})  # all policies are sampled alike
    inputs |= generation.inputs() | {"run.seed": settings.run.seed}
    if reference := reference_validation(run, reference_uri):
        inputs |= {
            "reference": digest_of(reference.outputs),
            "spin.ref_policy_kl_penalty": settings.spin.beta(iteration),
        }
    return inputs


def _read_prompts(run: RunStore) -> list[Prompt]:
    files = {layout.VALIDATION: read_manifest(run, layout.DATA_MANIFEST).outputs[layout.VALIDATION]}
    folder = run.fetch(files, what="the validation data", made_by=layout.DATA_MANIFEST)
    return read_rows(folder / layout.VALIDATION, Prompt)


def _global_step(run: RunStore, iteration: int, epoch: int) -> int:
    """Optimizer steps that the policy of an epoch has seen."""
    if iteration == layout.BASE:
        return 0
    return int(read_manifest(run, layout.epoch_manifest(iteration, epoch)).facts["state"]["step"])


def _measured(
    step: Step,
    compute: Compute,
    folder: Path,
    plain: Path,
    batches: list[list[Prompt]],
    chosen: list[Prompt],
    reference: Reference | None,
) -> Measured:
    """Measure the policy: here, or in several processes that divide the records."""
    settings, sampling = step.settings, sampling_of(step.run, step.settings)
    answers = None
    if reference and chosen:
        answers = {prompt.index: reference.samples[prompt.index].generated_ids for prompt in chosen}
    num_records = sum(map(len, batches))
    progress = step.progress(num_records, "answers")
    division = divide(
        settings,
        folder,
        "validate",
        num_tokens=num_records * settings.data.max_length
        + len(chosen) * len(decodings(sampling)) * settings.generation.max_new_tokens,
        num_gpus=num_visible_gpus(compute),
    )
    ranks = step.num_processes = division.processes
    if ranks > 1:
        where, report = f"validation by {ranks} processes", progress.update
        return measure_in_ranks(
            folder,
            plain,
            batches,
            chosen,
            sampling,
            settings,
            ranks,
            is_sharded=division.is_sharded,
            reference=answers,
            where=where,
            report=report,
        )
    loader = WholeLoader(compute)
    losses = [
        loss for batch in human_losses(folder, batches, settings, compute, progress.update, loader) for loss in batch
    ]
    if not chosen or not math.isfinite(mean_nll(losses)):
        return Measured(losses, [], [], [])
    progress = step.progress(len(decodings(sampling)) * len(chosen), "samples")
    sampled, greedy = sample_answers(plain, chosen, sampling, settings, compute, progress.update, loader)
    samples = score_samples(folder, chosen, sampled, settings, compute, answers, loader)
    return Measured(losses, sampled, greedy, samples)
