"""Sample one answer to each prompt of a shard from the reference policy."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import closing
from typing import Any

from spin_components.algorithm.batching import derive_seed
from spin_components.data.shards import Pair, Prompt, read_rows, write_rows
from spin_components.engine.engine import Sampling
from spin_components.engine.open import choose_engine, open_engine
from spin_components.generate.blocks import answer_blocks, with_capacity
from spin_components.generate.engines import answer_with_engines
from spin_components.generate.samples import SAMPLES_A_SHARD, decode_samples, shortened
from spin_components.memory.processes import divide
from spin_components.model.compute import num_visible_gpus, resolve_compute, set_threads
from spin_components.model.stored import model_digest, open_model
from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest

logger = logging.getLogger(__name__)


def generate_shard(
    run_uri: str, iteration: int, shard: int, reference_uri: str, hardware: dict[str, Any] | None = None
) -> str:
    """Generate the answers of one shard of an iteration.

    Args:
        run_uri: the run.
        iteration: t.
        shard: number of the shard of prompts.
        reference_uri: the policy that iteration t starts from; empty when the attempt has stopped.
        hardware: `[hardware]`; None for what `prepare` recorded for the attempt.

    Returns: URI of the Parquet file of pairs, or empty when the attempt's time is up.
    """
    key = layout.generations(iteration, shard)
    with Step.begin("generate", run_uri, hardware, after=[reference_uri], iteration=iteration, shard=shard) as step:
        if step.is_due(layout.manifest_of(key), lambda: _inputs(step, iteration, shard, reference_uri)):
            prompts = _read_prompts(step.run, shard)
            pairs, facts = _generate(step, prompts, iteration, shard, reference_uri)
            with step.write(key) as path:
                write_rows(path, Pair, pairs)
            step.publish(facts)
        return step.returns(step.run.uri_of(key))


def _inputs(step: Step, iteration: int, shard: int, reference_uri: str) -> dict[str, Any]:
    """What the shard's answers depend on."""
    generation = step.settings.generation.at(iteration)
    data = read_manifest(step.run, layout.DATA_MANIFEST)
    return {
        **generation.inputs(),
        "run.seed": step.settings.run.seed,
        "data.max_length": step.settings.data.max_length,
        "prompts": data.outputs[layout.train_shard(shard)].sha256,
        "reference": model_digest(step.run, reference_uri),
    }


def _read_prompts(run: RunStore, shard: int) -> list[Prompt]:
    key = layout.train_shard(shard)
    files = {key: read_manifest(run, layout.DATA_MANIFEST).outputs[key]}
    return read_rows(run.fetch(files, what=f"training shard {shard}", made_by=layout.DATA_MANIFEST) / key, Prompt)


def _generate(
    step: Step, prompts: list[Prompt], iteration: int, shard: int, reference_uri: str
) -> tuple[list[Pair], dict[str, Any]]:
    """Sample the answers y' ~ p_t(. | x); returns the pairs and the facts of the manifest."""
    settings = step.settings
    generation = settings.generation
    folder = open_model(step.run, reference_uri, what="the reference policy")
    set_threads(settings.hardware)
    compute = resolve_compute(settings.hardware, settings.training.precision)
    eos_ids = read_manifest(step.run, layout.DATA_MANIFEST).facts["eos_ids"]
    seed = derive_seed(settings.run.seed, "generate", iteration, shard)
    name = choose_engine(generation, compute, len(prompts))
    sampling = with_capacity(Sampling(generation, eos_ids, seed, iteration), prompts, settings)
    blocks = generation.blocks(len(prompts))
    progress = step.progress(len(prompts), "answers", verb="generated")
    num_gpus = num_visible_gpus(compute)
    num_tokens = len(prompts) * generation.max_new_tokens
    most = divide(settings, folder, "generate", num_tokens=num_tokens, num_gpus=num_gpus).processes
    num_engines = min(most, len(blocks))
    if num_engines < most:
        logger.info("%d of %d engines: the shard has as many blocks of generation.block_size", num_engines, most)
    started, step.num_processes = time.monotonic(), num_engines
    if num_engines > 1:
        answers = answer_with_engines(
            name, folder, prompts, sampling, settings, num_engines, on_gpu=num_gpus > 0, report=progress.update
        )
    else:
        with closing(open_engine(name, folder, settings.model, sampling, compute)) as engine:
            started = time.monotonic()
            with_prompts = ((block, [prompts[number] for number in block]) for block in blocks)
            answers = [
                answer
                for _, answered in answer_blocks(engine, with_prompts, settings, progress.update)
                for answer in answered
            ]
    duration_s = time.monotonic() - started
    pairs = [
        Pair(
            prompt.index,
            prompt.prompt_ids,
            prompt.actual_ids,
            answer.token_ids,
            answer.finish_reason,
            iteration,
            answer.logprob,
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    facts = _count(pairs, eos_ids) | {
        "engine": name,
        **({"num_blocks": len(blocks)} if len(blocks) > 1 else {}),
        **({"num_engines": num_engines} if num_engines > 1 else {}),
        "precision": compute.precision,
        "tokens_per_s": round(sum(len(pair.generated_ids) for pair in pairs) / duration_s, 1),
        "samples": decode_samples(pairs[:SAMPLES_A_SHARD], folder, settings.model),
    }
    step.events.write("samples", samples=shortened(facts["samples"]))
    cut = facts["finish_reasons"].get("length", 0)
    if cut > len(pairs) / 2:
        step.warn(f"{cut} of {len(pairs)} generated answers were cut at generation.max_new_tokens and carry no EOS")
    return pairs, facts


def _count(pairs: list[Pair], eos_ids: list[int]) -> dict[str, Any]:
    return {
        "num_pairs": len(pairs),
        "num_empty": sum(pair.is_empty(eos_ids) for pair in pairs),
        "num_identical": sum(pair.is_identical for pair in pairs),
        "finish_reasons": dict(Counter(pair.finish_reason for pair in pairs)),
        "mean_actual_tokens": round(sum(len(pair.actual_ids) for pair in pairs) / len(pairs), 2),
        "mean_generated_tokens": round(sum(len(pair.generated_ids) for pair in pairs) / len(pairs), 2),
    }
