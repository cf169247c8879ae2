"""Batches by `transformers.generate` itself, for architectures that slot attention does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import Prompted
from spin_components.device import Compute
from spin_components.generate.engine import Answer, Sampling


class PlainBatches:
    """Prompts sorted by length, left-padded; no setting inherited from the model."""

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling, compute: Compute) -> None:
        from transformers import GenerationConfig

        self._model, self._tokenizer, self._sampling, self._compute = model, tokenizer, sampling, compute
        # generate() fills what it is not told from the model's own configuration, so that one is replaced as well
        model.generation_config = GenerationConfig(**self._config())
        torch.manual_seed(sampling.seed)

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

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        """As `Engine.generate`."""
        order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
        size = self._sampling.settings.batch_size
        for start in range(0, len(order), size):
            places = order[start : start + size]
            rows = self._sample([prompts[place] for place in places], max(max_new_tokens[place] for place in places))
            answers = [self._cut(row, max_new_tokens[place]) for place, row in zip(places, rows, strict=True)]
            groups = [
                Prompted(prompts[place], (token_ids,)) for place, (token_ids, _) in zip(places, answers, strict=True)
            ]
            with torch.inference_mode(), self._compute.autocast():
                logprobs = answer_logprobs(self._model, groups, self._compute.device).tolist()
            for place, (token_ids, reason), logprob in zip(places, answers, logprobs, strict=True):
                yield place, Answer(token_ids, reason, logprob)

    def _sample(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        longest = max(len(prompt) for prompt in prompts)
        gaps = [longest - len(prompt) for prompt in prompts]
        fill = self._sampling.eos_ids[0]
        input_ids = torch.tensor([[fill] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)])
        attention_mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps])
        with torch.inference_mode(), self._compute.autocast():
            output = self._model.generate(
                input_ids=input_ids.to(self._compute.device),
                attention_mask=attention_mask.to(self._compute.device),
                max_new_tokens=max_new_tokens,
                tokenizer=self._tokenizer,
            )
        return output[:, longest:].tolist()  # type: ignore[no-any-return]

    def _cut(self, row: list[int], limit: int) -> tuple[list[int], str]:
        """Undo the batch: a row that ended before others goes on with filling that must not be taken for its EOS."""
        ends = [place for place, token in enumerate(row[:limit]) if token in self._sampling.eos_ids]
        token_ids, reason = (row[: ends[0] + 1], "stop") if ends else (row[:limit], "length")
        if (length := self._stop_string_end(token_ids)) is not None:
            return token_ids[:length], "stop_string"
        return token_ids, reason

    def _stop_string_end(self, token_ids: list[int]) -> int | None:
        """Number of tokens up to the first that completes a stop string."""
        stop = self._sampling.settings.stop
        if not stop or not any(text in self._tokenizer.decode(token_ids) for text in stop):
            return None
        lengths = range(1, len(token_ids) + 1)
        return next(n for n in lengths if any(text in self._tokenizer.decode(token_ids[:n]) for text in stop))
