"""Sampling by transformers' `generate`, for architectures that slot attention does not support."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import Prompted
from spin_components.engine.engine import Answer, Sampling
from spin_components.model.compute import Compute


class FallbackGenerator:
    """Generates in static batches: prompts sorted by length and padded on the left.

    The generation settings of the model's folder are ignored.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling, compute: Compute) -> None:
        from transformers import GenerationConfig

        self._model, self._tokenizer, self._sampling, self._compute = model, tokenizer, sampling, compute
        # generate() takes missing values from the model's own configuration, so that is replaced as well
        model.generation_config = GenerationConfig(**self._config())

    def _config(self) -> dict[str, Any]:
        settings, temperature = self._sampling.settings, self._sampling.temperature
        config = {
            "do_sample": temperature > 0,
            "repetition_penalty": settings.repetition_penalty,
            "min_new_tokens": settings.min_new_tokens or None,
            "eos_token_id": self._sampling.eos_ids,
            "pad_token_id": self._sampling.eos_ids[0],
            "stop_strings": settings.stop or None,
            "use_cache": True,
        }
        if temperature > 0:
            config |= {"temperature": temperature, "top_p": settings.top_p, "top_k": settings.top_k}
        return config

    def generate(
        self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int], *, numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """Implements `Engine.generate`; one generator serves all prompts of a call."""
        torch.manual_seed(self._sampling.seed_of(numbers or range(len(prompts))))
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        size = self._sampling.settings.batch_size
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            rows = self._sample([prompts[index] for index in indices], max(max_new_tokens[index] for index in indices))
            answers = [self._cut(row, max_new_tokens[index]) for index, row in zip(indices, rows, strict=True)]
            groups = [
                Prompted(prompts[index], (token_ids,)) for index, (token_ids, _) in zip(indices, answers, strict=True)
            ]
            with torch.inference_mode(), self._compute.autocast():
                logprobs = answer_logprobs(self._model, groups, self._compute.device).tolist()
            for index, (token_ids, reason), logprob in zip(indices, answers, logprobs, strict=True):
                yield index, Answer(token_ids, reason, logprob)

    def _sample(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        longest = max(len(prompt) for prompt in prompts)
        num_padding = [longest - len(prompt) for prompt in prompts]
        pad_id = self._sampling.eos_ids[0]
        input_ids = torch.tensor([[pad_id] * num + prompt for num, prompt in zip(num_padding, prompts, strict=True)])
        attention_mask = torch.tensor([[0] * num + [1] * (longest - num) for num in num_padding])
        with torch.inference_mode(), self._compute.autocast():
            output = self._model.generate(
                input_ids=input_ids.to(self._compute.device),
                attention_mask=attention_mask.to(self._compute.device),
                max_new_tokens=max_new_tokens,
                tokenizer=self._tokenizer,
            )
        return output[:, longest:].tolist()  # type: ignore[no-any-return]

    def _cut(self, row: list[int], limit: int) -> tuple[list[int], str]:
        """Token ids and finish reason of a batch's row, without the padding after its first EOS."""
        eos_indices = [index for index, token in enumerate(row[:limit]) if token in self._sampling.eos_ids]
        token_ids, reason = (row[: eos_indices[0] + 1], "stop") if eos_indices else (row[:limit], "length")
        if (length := self._stop_string_end(token_ids)) is not None:
            return token_ids[:length], "stop_string"
        return token_ids, reason

    def _stop_string_end(self, token_ids: list[int]) -> int | None:
        """Number of tokens up to the one that completes a stop string; None where there is none."""
        stop = self._sampling.settings.stop
        if not stop or not any(text in self._tokenizer.decode(token_ids) for text in stop):
            return None
        lengths = range(1, len(token_ids) + 1)
        return next(n for n in lengths if any(text in self._tokenizer.decode(token_ids[:n]) for text in stop))
