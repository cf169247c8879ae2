"""Log-probabilities of both answers under the reference: frozen, so computed once, and no second model in training.

Pairs of earlier iterations that are trained on again (`spin.history`) are scored here too: what an older reference
gave them is of no use, because rewards are measured from the policy that this iteration starts from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.order import derive_seed, form_batches, micro_batches
from spin_components.algorithm.packing import Prompted
from spin_components.data.shards import Pair, Score, write_rows
from spin_components.device import Compute, resolve_compute, set_threads
from spin_components.errors import NonFiniteError
from spin_components.events import Progress
from spin_components.execution import Step, step
from spin_components.process import STOPPED
from spin_components.ref_logprob.agreement import check_sampler, coarser
from spin_components.ref_logprob.hygiene import Hygiene
from spin_components.ref_logprob.played import generations_input, read_generations, read_pairs
from spin_components.ref_logprob.pool import origins, pool_pairs
from spin_components.scoring import load_scored, resolve_packing
from spin_components.settings import TrainingSettings
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.manifests import finished, read_manifest
from spin_components.store.models import model_digest, open_scored

logger = logging.getLogger(__name__)

_POOL = ("history_ratio", "max_similarity", "max_length_ratio")


def score_shard(
    run_uri: str, iteration: int, shard: int, reference_uri: str, generations_uri: str, hardware: dict[str, Any]
) -> str:
    """Score one shard of an iteration, and with it the same shard of those before it that are trained on again.

    Args:
        run_uri: the run.
        iteration: t.
        shard: which part of the pairs.
        reference_uri: the policy that generated them.
        generations_uri: what `generate` returned; empty when the attempt has stopped.
        hardware: the attempt's `[hardware]`.

    Returns: URI of the Parquet file of scores, or empty when the attempt's time is up.
    """
    if generations_uri == STOPPED:
        return STOPPED
    with step("ref-logprob", run_uri, hardware, iteration=iteration, shard=shard) as current:
        run, settings = current.run, current.settings
        key = layout.ref_logprobs(iteration, shard)
        played = {origin: read_generations(run, origin, shard) for origin in origins(iteration, settings.spin.history)}
        compute = resolve_compute(settings.hardware, settings.training.precision)
        inputs = {
            **{generations_input(origin): digest_of(manifest.outputs) for origin, manifest in played.items()},
            "reference": model_digest(run, reference_uri),
            "precision": compute.precision,
            **settings.lora.scoring_inputs(),
            "packing": resolve_packing(settings.training, compute),
            "run.seed": settings.run.seed,
            "training.global_batch_size": settings.training.global_batch_size,
            "training.micro_batch_size": settings.training.micro_batch_size,
            "eos_ids": read_manifest(run, layout.DATA_MANIFEST).facts["eos_ids"],
            **{f"spin.{name}": getattr(settings.spin, name) for name in _POOL},
            "generation.on_truncated": settings.generation.on_truncated,
        }
        base_uri = str(run.read_json(layout.RUN)["base_model"]["uri"]) if settings.objective.base_weight else ""
        if base_uri:
            inputs["base"] = model_digest(run, base_uri)
        if manifest := finished(run, layout.manifest_of(key), inputs):
            current.reuse(manifest)
            return run.uri_of(key)
        if current.out_of_time():
            return current.stop("max_time")
        pool = pool_pairs(
            read_pairs(run, played[iteration]),
            [pair for origin, manifest in played.items() if origin < iteration for pair in read_pairs(run, manifest)],
            Hygiene.of(settings, inputs["eos_ids"]),
            history_ratio=settings.spin.history_ratio,
            seed=derive_seed(settings.run.seed, "history", iteration, shard),
        )
        set_threads(settings.hardware)
        seed = derive_seed(settings.run.seed, "batches", iteration, shard)
        batches = form_batches(len(pool.pairs), settings.training.global_batch_size, seed)
        scores = _scored_by(reference_uri, "the reference policy", pool.pairs, compute, batches, current)
        agreement = check_sampler(
            pool.pairs,
            scores,
            iteration=iteration,
            engine=played[iteration].facts["engine"],
            precision=coarser(played[iteration].facts["precision"], compute.precision),
            tolerance=settings.hardware.sampler_tolerance,
            where=run.uri_of(layout.generations(iteration, shard)),
        )
        if base_uri:
            is_base = inputs["base"] == inputs["reference"]
            under_base = (
                scores if is_base else _scored_by(base_uri, "the base model", pool.pairs, compute, batches, current)
            )
            scores = [
                replace(score, base_actual=base.ref_actual, base_generated=base.ref_generated)
                for score, base in zip(scores, under_base, strict=True)
            ]
        with run.staged(key) as staged:
            write_rows(staged.path, Score, scores)
        facts = pool.counts.model_dump(mode="json") | agreement
        current.finish(layout.manifest_of(key), inputs=inputs, outputs=staged.outputs, facts=facts)
        return run.uri_of(key)


def _scored_by(
    uri: str, what: str, pairs: Sequence[Pair], compute: Compute, batches: Sequence[Sequence[int]], current: Step
) -> list[Score]:
    """`score_pairs` under a model that is loaded for it, and gone when this returns."""
    model = load_scored(open_scored(current.run, uri, what=what), current.settings, compute).eval()
    return score_pairs(model, pairs, compute, batches, current.settings.training, current)


def score_pairs(
    model: Any,
    pairs: Sequence[Pair],
    compute: Compute,
    batches: Sequence[Sequence[int]],
    training: TrainingSettings,
    current: Step | None = None,
) -> list[Score]:
    """Both sums of every pair, in the order given, in the very micro-batches that training will compute.

    Args:
        model: the reference.
        pairs: of one shard.
        compute: device and precision.
        batches: places of pairs, by global batch; see `algorithm.order.form_batches`.
        training: batch sizes.
        current: the running step, to report to.

    Raises:
        NonFiniteError: a log-probability is NaN or infinite; names the pairs.
    """
    size = training.micro_batch_size
    lengths = [pair.num_tokens for pair in pairs]
    scores: dict[int, Score] = {}
    reported = time.monotonic()
    progress = Progress(current.events, len(pairs), "pairs") if current else None
    for number, batch in enumerate(batches):
        for micro in micro_batches(
            batch, lengths, micro_batch_size=size, rank=0, ranks=1, num=training.global_batch_size // size
        ):
            if micro.is_filling:
                continue
            chosen = [pairs[place] for place in micro.pairs]
            with torch.inference_mode(), compute.autocast():
                logprobs = answer_logprobs(model, both_answers(chosen), compute.device).view(-1, 2).cpu()
            if not torch.isfinite(logprobs).all():
                raise NonFiniteError(
                    f"the reference gives a log-probability that is not finite to one of the pairs "
                    f"{[pair.index for pair in chosen]}; look at the model's weights"
                )
            for place, pair, (actual, generated) in zip(micro.pairs, chosen, logprobs.tolist(), strict=True):
                scores[place] = Score(pair.index, actual, generated, number, pair.origin)
            if progress:
                progress.update(len(scores))
            if current and (time.monotonic() - reported > 2 or len(scores) == len(pairs)):
                reported = time.monotonic()
                logger.info("scored %d of %d pairs", len(scores), len(pairs))
    return [scores[place] for place in range(len(pairs))]


def both_answers(pairs: Sequence[Pair]) -> list[Prompted]:
    """Each pair's prompt with the human answer and the generated one."""
    return [Prompted(pair.prompt_ids, (pair.actual_ids, pair.generated_ids)) for pair in pairs]
