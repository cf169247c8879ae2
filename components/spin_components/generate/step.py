"""Sample one answer to each prompt of a shard from the reference policy."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from spin_components.algorithm.order import derive_seed
from spin_components.data.shards import Pair, Prompt, read_rows, write_rows
from spin_components.device import resolve_compute, set_threads
from spin_components.errors import EngineError
from spin_components.events import Progress
from spin_components.execution import Step, step
from spin_components.generate.engine import Answer, Engine, Sampling, choose_engine, open_engine
from spin_components.generate.samples import SAMPLES_A_SHARD, decode_samples, shortened
from spin_components.process import STOPPED
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.manifests import finished, read_manifest
from spin_components.store.models import model_digest, open_model

logger = logging.getLogger(__name__)


def generate_shard(run_uri: str, iteration: int, shard: int, reference_uri: str, hardware: dict[str, Any]) -> str:
    """Play one shard of an iteration.

    Args:
        run_uri: the run.
        iteration: t.
        shard: which part of the prompts.
        reference_uri: the policy that iteration t starts from; empty when the attempt has stopped.
        hardware: the attempt's `[hardware]`.

    Returns: URI of the Parquet file of pairs, or empty when the attempt's time is up.
    """
    if reference_uri == STOPPED:
        return STOPPED
    with step("generate", run_uri, hardware, iteration=iteration, shard=shard) as current:
        run, settings = current.run, current.settings
        generation = settings.generation.at(iteration)
        key = layout.generations(iteration, shard)
        data = read_manifest(run, layout.DATA_MANIFEST)
        source = layout.train_shard(shard)
        inputs = {
            **{f"generation.{name}": value for name, value in generation.model_dump(mode="json").items()},
            "run.seed": settings.run.seed,
            "data.max_length": settings.data.max_length,
            "prompts": data.outputs[source].sha256,
            "reference": model_digest(run, reference_uri),
        }
        if manifest := finished(run, layout.manifest_of(key), inputs):
            current.reuse(manifest)
            return run.uri_of(key)
        if current.out_of_time():
            return current.stop("max_time")
        what = f"training shard {shard}"
        folder = run.fetch({source: data.outputs[source]}, what=what, made_by=layout.DATA_MANIFEST)
        prompts = read_rows(folder / source, Prompt)
        pairs, facts = _play(current, settings, prompts, reference_uri, data.facts["eos_ids"])
        with run.staged(key) as staged:
            write_rows(staged.path, Pair, pairs)
        current.finish(layout.manifest_of(key), inputs=inputs, outputs=staged.outputs, facts=facts)
        return run.uri_of(key)


def _play(
    current: Step, settings: Settings, prompts: list[Prompt], reference_uri: str, eos_ids: list[int]
) -> tuple[list[Pair], dict[str, Any]]:
    labels = current.events.labels
    folder = open_model(current.run, reference_uri, what="the reference policy")
    set_threads(settings.hardware)
    compute = resolve_compute(settings.hardware, settings.training.precision)
    seed = derive_seed(settings.run.seed, "generate", labels["iteration"], labels["shard"])
    name = choose_engine(settings.generation, compute, len(prompts))
    sampling = Sampling(settings.generation, eos_ids, seed, labels["iteration"])
    engine = open_engine(name, folder, settings.model, sampling, compute)
    started = time.monotonic()
    try:
        answers = _collect(current, engine, prompts, _limits(prompts, settings))
    finally:
        engine.close()
    duration_s = time.monotonic() - started
    origin = int(labels["iteration"])
    pairs = [
        Pair(
            prompt.index,
            prompt.prompt_ids,
            prompt.actual_ids,
            answer.token_ids,
            answer.finish_reason,
            origin,
            answer.logprob,
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    facts = _facts(pairs, eos_ids) | {
        "engine": name,
        "precision": compute.precision,
        "tokens_per_s": round(sum(len(pair.generated_ids) for pair in pairs) / duration_s, 1),
        "samples": decode_samples(pairs[:SAMPLES_A_SHARD], folder, settings.model),
    }
    current.events.write("samples", samples=shortened(facts["samples"]))
    cut = facts["finish_reasons"].get("length", 0)
    if cut > len(pairs) / 2:
        message = f"{cut} of {len(pairs)} generated answers were cut at generation.max_new_tokens and carry no EOS"
        logger.warning(message)
        current.events.write("warning", message=message)
    return pairs, facts


def _limits(prompts: Sequence[Prompt], settings: Settings) -> list[int]:
    """Tokens each answer may have, so that prompt and answer fit `data.max_length`."""
    most = settings.generation.max_new_tokens
    return [min(most, settings.data.max_length - len(prompt.prompt_ids)) for prompt in prompts]


def _collect(current: Step, engine: Engine, prompts: Sequence[Prompt], limits: list[int]) -> list[Answer]:
    answers: dict[int, Answer] = {}
    tokens, reported = 0, time.monotonic()
    progress = Progress(current.events, len(prompts), "answers")
    for place, answer in engine.generate([prompt.prompt_ids for prompt in prompts], limits):
        answers[place] = answer
        tokens += len(answer.token_ids)
        progress.update(len(answers), num_tokens=tokens)
        if time.monotonic() - reported > 2 or len(answers) == len(prompts):
            reported = time.monotonic()
            logger.info("generated %d of %d answers, %d tokens", len(answers), len(prompts), tokens)
    missing = [place for place in range(len(prompts)) if place not in answers]
    if missing:
        raise EngineError(f"the {engine.name} engine returned {len(answers)} answers for {len(prompts)} prompts")
    return [answers[place] for place in range(len(prompts))]


def _facts(pairs: list[Pair], eos_ids: list[int]) -> dict[str, Any]:
    return {
        "num_pairs": len(pairs),
        "num_empty": sum(pair.is_empty(eos_ids) for pair in pairs),
        "num_identical": sum(pair.is_identical for pair in pairs),
        "finish_reasons": dict(Counter(pair.finish_reason for pair in pairs)),
        "mean_actual_tokens": round(sum(len(pair.actual_ids) for pair in pairs) / len(pairs), 2),
        "mean_generated_tokens": round(sum(len(pair.generated_ids) for pair in pairs) / len(pairs), 2),
    }
