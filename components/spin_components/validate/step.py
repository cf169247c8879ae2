"""Validate the policy that an epoch ended with, and the base model once."""

from __future__ import annotations

import logging
from typing import Any

from spin_components.data.shards import AnswerLoss, Prompt, read_rows, write_rows
from spin_components.device import Compute, resolve_compute, set_threads
from spin_components.events import Progress
from spin_components.execution import STOPPED, Step, step
from spin_components.scoring import load_scored, resolve_packing
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.manifests import finished, read_manifest
from spin_components.store.models import model_digest, open_scored
from spin_components.store.run import RunStore
from spin_components.validate.nll import answer_losses, mean_nll, validation_batches

logger = logging.getLogger(__name__)


def validate(run_uri: str, iteration: int, epoch: int, policy_uri: str, hardware: dict[str, Any]) -> str:
    """Measure the held-out loss of one policy.

    Args:
        run_uri: the run.
        iteration: t, or `layout.BASE`.
        epoch: within the iteration.
        policy_uri: what to validate; empty when the attempt has stopped.
        hardware: the attempt's `[hardware]`.

    Returns: `policy_uri`, validated; or empty when the attempt's time is up.
    """
    if policy_uri == STOPPED:
        return STOPPED
    with step("validate", run_uri, hardware, iteration=iteration, epoch=epoch) as current:
        run, settings = current.run, current.settings
        key = layout.validation(iteration, epoch)
        data = read_manifest(run, layout.DATA_MANIFEST).outputs[layout.VALIDATION]
        compute = resolve_compute(settings.hardware, settings.training.precision)
        inputs = {
            "policy": model_digest(run, policy_uri),
            "data": data.sha256,
            "validation.limit_val_batches": repr(settings.validation.limit_val_batches),
            "validation.batch_size": settings.validation.batch_size,
            "precision": compute.precision,
            **settings.lora.scoring_inputs(),
            "packing": resolve_packing(settings.training, compute),
        }
        if manifest := finished(run, key, inputs):
            current.reuse(manifest)
            return policy_uri
        if current.out_of_time():
            return current.stop("max_time")
        files = run.fetch({layout.VALIDATION: data}, what="the validation data", made_by=layout.DATA_MANIFEST)
        prompts = read_rows(files / layout.VALIDATION, Prompt)
        set_threads(settings.hardware)
        model = load_scored(open_scored(run, policy_uri, what="the policy"), settings, compute).eval()
        losses = _measure(current, settings, model, compute, prompts)
        with run.staged(key.removesuffix(".json") + ".parquet") as staged:
            write_rows(staged.path, AnswerLoss, losses)
        val_loss = mean_nll(losses)
        if current.tracking:
            current.tracking.log("validation", _global_step(run, iteration, epoch), {"val_loss": val_loss})
        facts = {"val_loss": val_loss, "num_answers": len(losses), "policy_uri": policy_uri}
        current.finish(key, inputs=inputs, outputs=staged.outputs, facts=facts)
        logger.info("val_loss %.4f on %d answers", facts["val_loss"], len(losses))
        return policy_uri


def _global_step(run: RunStore, iteration: int, epoch: int) -> int:
    """Optimizer steps done when the policy of an epoch was."""
    if iteration == layout.BASE:
        return 0
    return int(read_manifest(run, layout.epoch_manifest(iteration, epoch)).facts["state"]["step"])


def _measure(
    current: Step, settings: Settings, model: Any, compute: Compute, prompts: list[Prompt]
) -> list[AnswerLoss]:
    batches = validation_batches(prompts, settings.validation)
    losses: list[AnswerLoss] = []
    progress = Progress(current.events, sum(len(batch) for batch in batches), "answers")
    for found in answer_losses(model, batches, compute):
        losses += found
        progress.update(len(losses))
    return losses
