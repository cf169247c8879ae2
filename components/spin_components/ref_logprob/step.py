"""Log-probabilities of both answers under the reference, computed once: training needs no second model.

Pairs of earlier iterations that are trained on again (`spin.history`) are scored here too, since rewards are measured
from the policy that this iteration starts from. For T-SPIN the pairs are joined with iteration 0's answers to the same
prompts, which are scored with them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from spin_components.algorithm.batch_division import BatchDivision
from spin_components.algorithm.batching import MicroBatch, derive_seed, form_batches
from spin_components.algorithm.logprobs import is_packed
from spin_components.algorithm.token_budget import PairLengths
from spin_components.data.row_columns import RowColumns
from spin_components.data.shards import Pair, Score
from spin_components.data.triplets import Triplets
from spin_components.errors import NonFiniteError
from spin_components.memory.processes import divide
from spin_components.model.batch_layout import resolve_packing
from spin_components.model.compute import Compute, num_visible_gpus, resolve_compute, set_threads
from spin_components.model.frozen import WholeLoader
from spin_components.model.scoring import load_scored, pair_logprobs
from spin_components.model.stored import model_digest, open_scored
from spin_components.record.pairs import generations_input, read_generations, read_pairs
from spin_components.ref_logprob.pool import Hygiene, Pool, origins, pool_pairs, proto_rows
from spin_components.ref_logprob.ranks import score_in_ranks
from spin_components.ref_logprob.sampler_check import check_sampler, coarser
from spin_components.runtime.step import Step
from spin_components.settings.training import TrainingSettings
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.manifests import Manifest, read_manifest

logger = logging.getLogger(__name__)

_POOL = ("history_ratio", "max_similarity", "max_length_ratio")


def score_shard(
    run_uri: str,
    iteration: int,
    shard: int,
    reference_uri: str,
    generations_uri: str,
    hardware: dict[str, Any] | None = None,
) -> str:
    """Score one shard of an iteration, and the same shard of the earlier iterations that are trained on again.

    Args:
        run_uri: the run.
        iteration: t.
        shard: number of the shard of pairs.
        reference_uri: the policy that generated the iteration's answers.
        generations_uri: what `generate` returned; empty when the attempt has stopped.
        hardware: `[hardware]`; None for what `prepare` recorded for the attempt.

    Returns: URI of the Parquet file of scores, or empty when the attempt's time is up.
    """
    key = layout.ref_logprobs(iteration, shard)
    with Step.begin(
        "ref-logprob", run_uri, hardware, after=[generations_uri], iteration=iteration, shard=shard
    ) as step:
        if step.is_due(layout.manifest_of(key), lambda: _inputs(step, iteration, shard, reference_uri)):
            scores, facts = _score(step, iteration, shard, reference_uri)
            with step.write(key) as path:
                scores.write(path)
            step.publish(facts)
        return step.returns(step.run.uri_of(key))


def _inputs(step: Step, iteration: int, shard: int, reference_uri: str) -> dict[str, Any]:
    """What the shard's scores depend on."""
    run, settings = step.run, step.settings
    compute = resolve_compute(settings.hardware, settings.training.precision)
    protos = _protos(step, iteration, shard, reference_uri)
    inputs = {
        **{
            generations_input(origin): digest_of(manifest.outputs)
            for origin, manifest in {**_generations(step, iteration, shard), **protos}.items()
        },
        "reference": model_digest(run, reference_uri),
        "precision": compute.precision,
        **settings.lora.scoring_inputs(),
        "packing": resolve_packing(settings.training),
        "run.seed": settings.run.seed,
        "training.global_batch_size": settings.training.global_batch_size,
        "training.micro_batch_size": settings.training.micro_batch_size,
        **settings.training.budget_inputs(),
        "eos_ids": _eos_ids(step),
        **{f"spin.{name}": getattr(settings.spin, name) for name in _POOL},
        "generation.on_truncated": settings.generation.on_truncated,
    }
    if settings.objective.base_weight:
        inputs["base"] = model_digest(run, _base_uri(step))
    if protos:
        inputs["answers of a pair"] = 3
    return inputs


def _generations(step: Step, iteration: int, shard: int) -> dict[int, Manifest]:
    """Manifests of what the shard generated in the iterations that are trained on, this one first."""
    return {
        origin: read_generations(step.run, origin, shard) for origin in origins(iteration, step.settings.spin.history)
    }


def _protos(step: Step, iteration: int, shard: int, reference_uri: str) -> dict[int, Manifest]:
    """By 0, the manifest of the shard's proto answers, which iteration 0 generated.

    Empty where the objective uses none, and where the reference is the policy that generated them: after the run went
    back to it, as in iteration 0, both generated answers are from the same policy.
    """
    if step.settings.objective.answers(iteration) < 3:
        return {}
    protos = read_generations(step.run, 0, shard)
    is_initial = protos.inputs["reference"] == model_digest(step.run, reference_uri)
    return {} if is_initial else {0: protos}


def _eos_ids(step: Step) -> list[int]:
    ids: list[int] = read_manifest(step.run, layout.DATA_MANIFEST).facts["eos_ids"]
    return ids


def _base_uri(step: Step) -> str:
    return str(step.run.read_json(layout.RUN)["base_model"]["uri"])


def _score(step: Step, iteration: int, shard: int, reference_uri: str) -> tuple[RowColumns[Score], dict[str, Any]]:
    """Choose the pairs to train on and score them; returns the scores and the facts of the manifest."""
    settings = step.settings
    generations = _generations(step, iteration, shard)
    pool = _pool(step, generations, iteration, shard)
    for protos in _protos(step, iteration, shard, reference_uri).values():
        pool = _with_protos(step, pool, protos)
    compute = resolve_compute(settings.hardware, settings.training.precision)
    set_threads(settings.hardware)
    seed = derive_seed(settings.run.seed, "batches", iteration, shard)
    batches = form_batches(len(pool.pairs), settings.training.global_batch_size, seed)
    scores = _scored_by(reference_uri, "the reference policy", pool.pairs, compute, batches, step)
    sampler = generations[iteration].facts
    agreement = check_sampler(
        pool.pairs,
        scores,
        iteration=iteration,
        engine=sampler["engine"],
        precision=coarser(sampler["precision"], compute.precision),
        tolerance=settings.hardware.sampler_tolerance,
        where=step.run.uri_of(layout.generations(iteration, shard)),
    )
    if settings.objective.base_weight:
        base_uri, base_scores = _base_uri(step), scores
        if model_digest(step.run, base_uri) != model_digest(step.run, reference_uri):
            base_scores = _scored_by(base_uri, "the base model", pool.pairs, compute, batches, step)
        for kind in ("actual", "generated"):
            scores.set_column(f"base_{kind}", base_scores.column(f"ref_{kind}"))
    return scores, pool.counts.model_dump(mode="json") | agreement


def _pool(step: Step, generations: dict[int, Manifest], iteration: int, shard: int) -> Pool:
    """Read the pairs of this iteration and of those before it, and choose among them."""
    settings = step.settings
    earlier = [manifest for origin, manifest in generations.items() if origin < iteration]
    return pool_pairs(
        read_pairs(step.run, [generations[iteration]]),
        read_pairs(step.run, earlier),
        Hygiene.of(settings, _eos_ids(step)),
        history_ratio=settings.spin.history_ratio,
        seed=derive_seed(settings.run.seed, "history", iteration, shard),
    )


def _with_protos(step: Step, pool: Pool, manifest: Manifest) -> Pool:
    """Join the pairs with the proto answers, and count those that have one."""
    protos = read_pairs(step.run, [manifest])
    rows = proto_rows(pool.pairs, protos, Hygiene.of(step.settings, _eos_ids(step)))
    pairs = Triplets(pool.pairs, protos, rows)
    logger.info("%d of %d pairs have an answer of iteration 0 besides", pairs.num_triplets, len(pairs))
    return Pool(pairs, pool.counts.model_copy(update={"num_triplets": pairs.num_triplets}))


def _scored_by(
    uri: str, what: str, pairs: Sequence[Pair], compute: Compute, batches: Sequence[Sequence[int]], step: Step
) -> RowColumns[Score]:
    """Score the pairs with a model: here, or in several processes that share them; it is freed at the end."""
    settings, folder, with_protos = step.settings, open_scored(step.run, uri, what=what), isinstance(pairs, Triplets)
    report = step.progress(len(pairs), "pairs", verb="scored").update
    division = divide(
        settings,
        folder,
        "ref-logprob",
        num_tokens=sum(pair.num_tokens for pair in pairs) if settings.hardware.ranks > 1 else 0,
        num_gpus=num_visible_gpus(compute),
    )
    step.num_processes = division.processes
    if division.processes > 1:
        return score_in_ranks(
            folder,
            pairs,
            batches,
            settings,
            division.processes,
            is_sharded=division.is_sharded,
            where=f"scoring with {what}",
            report=report,
            with_protos=with_protos,
        )
    model = load_scored(folder, settings, compute, WholeLoader(compute)).eval()
    return score_pairs(
        model,
        pairs,
        compute,
        batches,
        settings.training,
        report,
        ranks=settings.hardware.world_size,
        with_protos=with_protos,
    )


def score_pairs(
    model: Any,
    pairs: Sequence[Pair],
    compute: Compute,
    batches: Iterable[Iterable[int]],
    training: TrainingSettings,
    report: Callable[[int], None] = lambda done: None,
    *,
    ranks: int = 1,
    with_protos: bool = False,
) -> RowColumns[Score]:
    """Log-probabilities of the answers of every pair, computed in the micro-batches that training will compute.

    Args:
        model: the reference.
        pairs: of one shard.
        compute: device and precision.
        batches: indices of pairs, by global batch; see `algorithm.batching.form_batches`.
        training: batch sizes.
        report: called with the number of pairs done.
        ranks: number of processes that training will have.
        with_protos: whether the scores have those of proto answers.

    Returns: the scores, in the order of the pairs.

    Raises:
        NonFiniteError: a log-probability is NaN or infinite; names the pairs.
    """
    scores, num_done = RowColumns(Score, num_zeros=len(pairs)), 0
    if with_protos:
        scores.set_column("ref_proto", np.full(len(pairs), np.nan))
    for number, batch in enumerate(batches):
        by_index = {int(i): pairs[i] for i in batch}
        for micro in _micro_batches(by_index, training, ranks, is_packed=is_packed(model)):
            if micro.is_filling:
                continue
            chosen = [by_index[i] for i in micro.pairs]  # B
            with torch.inference_mode(), compute.autocast():
                logprobs = [each.cpu() for each in pair_logprobs(model, chosen, compute.device) if each is not None]
            if not all(torch.isfinite(each).all() for each in logprobs):
                raise NonFiniteError(
                    f"the reference gives a log-probability that is not finite to one of the pairs "
                    f"{[pair.index for pair in chosen]}; look at the model's weights"
                )
            for i, weight, pair, (actual, generated, *proto) in zip(
                micro.pairs, micro.weights, chosen, torch.stack(logprobs, -1).tolist(), strict=True
            ):
                if not weight:  # it fills the micro-batch, and is computed in another one
                    continue
                score = Score(pair.index, actual, generated, number, pair.origin, ref_proto=math.nan)
                scores[i] = score if pair.proto_ids is None else replace(score, ref_proto=proto[0])
            num_done += int(sum(micro.weights))
            report(num_done)
    return scores


def _micro_batches(
    by_index: dict[int, Pair], training: TrainingSettings, ranks: int, *, is_packed: bool
) -> list[MicroBatch]:
    """The micro-batches that training forms of a global batch on all ranks."""
    indices = sorted(by_index)
    pairs = [by_index[i] for i in indices]
    lengths = PairLengths(
        [len(pair.prompt_ids) + sum(map(len, pair.answers)) for pair in pairs],
        [len(pair.prompt_ids) for pair in pairs],
        [max(map(len, pair.answers)) for pair in pairs],
        [len(pair.answers) for pair in pairs],
    )
    micros = BatchDivision(lengths, training, ranks, is_packed=is_packed).of_all_ranks(range(len(pairs)))
    return [MicroBatch(tuple(indices[place] for place in micro.pairs), micro.weights) for micro in micros]
