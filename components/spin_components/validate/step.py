"""Validate the policy that an epoch ended with, and the base model once."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from spin_components.algorithm.packing import Prompted
from spin_components.data.shards import AnswerLoss, Prompt, Sample, read_rows, write_rows
from spin_components.device import Compute, resolve_compute, set_threads
from spin_components.errors import NonFiniteError
from spin_components.events import Progress
from spin_components.execution import Step, step
from spin_components.generate.engine import Answer
from spin_components.process import STOPPED
from spin_components.scoring import load_scored, resolve_packing
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import FileDigest, digest_of
from spin_components.store.manifests import finished, read_manifest
from spin_components.store.models import model_digest, open_model, open_scored
from spin_components.store.run import RunStore
from spin_components.validate.held_out import (
    Reference,
    chosen_prompts,
    figures,
    margin_figures,
    read_reference,
    reference_check,
    sample_answers,
)
from spin_components.validate.nll import answer_losses, mean_nll, sampled_logprobs, validation_batches

logger = logging.getLogger(__name__)


def validate(
    run_uri: str, iteration: int, epoch: int, policy_uri: str, hardware: dict[str, Any], reference_uri: str
) -> str:
    """Measure the held-out loss of one policy, and look at what it answers by itself.

    Args:
        run_uri: the run.
        iteration: t, or `layout.BASE`.
        epoch: within the iteration.
        policy_uri: what to validate; empty when the attempt has stopped.
        hardware: the attempt's `[hardware]`.
        reference_uri: what the iteration began from, to tell the margin by; empty for the base model, which has none.

    Returns: `policy_uri`, validated; or empty when the attempt's time is up.

    Raises:
        NonFiniteError: the base model's loss is not finite. A policy's may be; then it cannot be chosen.
    """
    if policy_uri == STOPPED:
        return STOPPED
    with step("validate", run_uri, hardware, iteration=iteration, epoch=epoch) as current:
        run, settings = current.run, current.settings
        key = layout.validation(iteration, epoch)
        data = read_manifest(run, layout.DATA_MANIFEST).outputs[layout.VALIDATION]
        compute = resolve_compute(settings.hardware, settings.training.precision)
        inputs = _inputs(run, settings, compute, policy_uri, reference_uri, data, iteration)
        if manifest := finished(run, key, inputs):
            current.reuse(manifest)
            return policy_uri
        if current.out_of_time():
            return current.stop("max_time")
        files = run.fetch({layout.VALIDATION: data}, what="the validation data", made_by=layout.DATA_MANIFEST)
        prompts = read_rows(files / layout.VALIDATION, Prompt)
        set_threads(settings.hardware)
        folder = open_scored(run, policy_uri, what="the policy")
        losses = _measure(current, settings, compute, folder, prompts)
        mean = mean_nll(losses)
        facts: dict[str, Any] = {"val_loss": mean if math.isfinite(mean) else None, "num_answers": len(losses)}
        if facts["val_loss"] is None and iteration == layout.BASE:
            raise NonFiniteError(f"the base model's loss on the held-out answers is {mean}; look at its weights")
        with run.staged(layout.validation_losses(iteration, epoch)) as staged:
            write_rows(staged.path, AnswerLoss, losses)
        outputs = staged.outputs
        if _is_sampled(settings) and facts["val_loss"] is not None:
            chosen = chosen_prompts(prompts, losses, settings.validation.num_samples)
            reference = read_reference(run, reference_uri) if reference_uri else None
            plain = open_model(run, policy_uri, what="the policy") if settings.lora.is_quantized else folder
            answers = sample_answers(current, settings, compute, plain, chosen, data.sha256)
            samples = _scored(settings, compute, folder, chosen, answers, reference)
            facts |= figures(samples, chosen)
            if reference:
                facts |= margin_figures(samples, losses, reference, settings.spin.beta(iteration))
            with run.staged(layout.validation_samples(iteration, epoch)) as staged:
                write_rows(staged.path, Sample, samples)
            outputs = {**outputs, **staged.outputs}
        if current.tracking:
            numbers = {name: value for name, value in facts.items() if value is not None}
            current.tracking.log("validation", _global_step(run, iteration, epoch), numbers)
        current.finish(key, inputs=inputs, outputs=outputs, facts={**facts, "policy_uri": policy_uri})
        logger.info("val_loss %.4f on %d answers", mean, len(losses))
        return policy_uri


def _is_sampled(settings: Settings) -> bool:
    return settings.validation.num_samples > 0


def _inputs(
    run: RunStore,
    settings: Settings,
    compute: Compute,
    policy_uri: str,
    reference_uri: str,
    data: FileDigest,
    iteration: int,
) -> dict[str, Any]:
    inputs = {
        "policy": model_digest(run, policy_uri),
        "data": data.sha256,
        "validation.limit_val_batches": repr(settings.validation.limit_val_batches),
        "validation.batch_size": settings.validation.batch_size,
        "validation.num_samples": settings.validation.num_samples,
        "precision": compute.precision,
        "packing": resolve_packing(settings.training, compute),
    }
    if not _is_sampled(settings):
        return inputs
    generation = settings.generation.at(0).model_dump(mode="json")  # all policies are sampled alike
    inputs |= {f"generation.{name}": value for name, value in generation.items()} | {"run.seed": settings.run.seed}
    if check := reference_check(run, reference_uri):
        inputs |= {
            "reference": digest_of(check.outputs),
            "spin.ref_policy_kl_penalty": settings.spin.beta(iteration),
        }
    return inputs


def _global_step(run: RunStore, iteration: int, epoch: int) -> int:
    """Optimizer steps done when the policy of an epoch was."""
    if iteration == layout.BASE:
        return 0
    return int(read_manifest(run, layout.epoch_manifest(iteration, epoch)).facts["state"]["step"])


def _measure(
    current: Step, settings: Settings, compute: Compute, folder: Path, prompts: list[Prompt]
) -> list[AnswerLoss]:
    """Losses of the human answers.

    The model is let go of at the end: sampling takes its own, and both need not fit together.
    """
    model = load_scored(folder, settings, compute).eval()
    batches = validation_batches(prompts, settings.validation)
    losses: list[AnswerLoss] = []
    progress = Progress(current.events, sum(len(batch) for batch in batches), "answers")
    for found in answer_losses(model, batches, compute, finite=False):
        losses += found
        progress.update(len(losses))
    return losses


def _scored(
    settings: Settings,
    compute: Compute,
    folder: Path,
    prompts: list[Prompt],
    answers: list[Answer],
    reference: Reference | None,
) -> list[Sample]:
    """The policy's answers with its own log-probabilities of them, and of its reference's to the same prompts."""
    model = load_scored(folder, settings, compute).eval()
    groups = [
        Prompted(prompt.prompt_ids, (answer.token_ids, reference.samples[prompt.index].generated_ids))
        if reference
        else Prompted(prompt.prompt_ids, (answer.token_ids,))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    logprobs = sampled_logprobs(model, groups, settings.validation, compute)
    return [
        Sample(prompt.index, answer.token_ids, answer.finish_reason, found[0], found[1] if reference else math.nan)
        for prompt, answer, found in zip(prompts, answers, logprobs, strict=True)
    ]
