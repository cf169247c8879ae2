"""Real vLLM on the CPU, with one engine for all tests since it takes half a minute to start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.loss import STEP_ZERO_TOLERANCE
from spin_components.algorithm.packing import Prompted
from spin_components.data.shards import Pair, read_rows
from spin_components.engine.engine import Answer, Sampling
from spin_components.engine.transformers_engine import TransformersEngine
from spin_components.engine.vllm_engine import VllmEngine
from spin_components.model.compute import Compute
from spin_components.model.folder import load_tokenizer
from spin_components.model.loading import load_model
from spin_components.ref_logprob.sampler_check import SAMPLER_TOLERANCE
from spin_components.settings.generation import GenerationSettings
from spin_components.settings.run import ModelSettings
from spin_components.settings.settings import Settings
from spin_components.store.manifests import read_manifest
from support.playing import losses, play, val_losses

CPU = Compute(torch.device("cpu"), "float32")
TOLERANCE = SAMPLER_TOLERANCE["vllm", "float32"]  # which every run keeps to, a token
EOS = 2  # <|im_end|> of the tiny model


def _sampling(**settings: Any) -> Sampling:
    return Sampling(GenerationSettings(batch_size=16, **settings), [EOS], seed=5)


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, prompts: list[list[int]]) -> Iterator[VllmEngine]:
    opened = VllmEngine(tiny_llama, ModelSettings(base=str(tiny_llama)), _sampling(max_new_tokens=24), CPU)
    _answers(opened, prompts, [24] * len(prompts))  # the longest that a test has: longer ones start vLLM again
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def prompts(tiny_llama: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(tiny_llama, ModelSettings(base=str(tiny_llama)))
    texts = [f"What does function {number} do{' and why' * (number % 3)}?" for number in range(20)]
    messages = [[{"role": "user", "content": text}] for text in texts]
    return [tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False) for m in messages]


def _answers(engine: VllmEngine | TransformersEngine, prompts: list[list[int]], limits: list[int]) -> list[Answer]:
    answers = dict(engine.generate(prompts, limits))
    assert sorted(answers) == list(range(len(prompts)))
    return [answers[index] for index in range(len(prompts))]


def test_each_answer_has_its_own_limit_and_eos_only_if_sampled(engine: VllmEngine, prompts: list[list[int]]) -> None:
    engine._sampling = _sampling(max_new_tokens=24)
    limits = [24 - index % 8 for index in range(len(prompts))]
    for answer, limit in zip(_answers(engine, prompts, limits), limits, strict=True):
        assert 1 <= len(answer.token_ids) <= limit
        assert EOS not in answer.token_ids[:-1]
        assert (answer.token_ids[-1] == EOS) == (answer.finish_reason == "stop")
        assert (len(answer.token_ids) == limit) or answer.finish_reason == "stop"


def test_greedy_answers_equal_those_of_transformers(
    engine: VllmEngine, prompts: list[list[int]], tiny_llama: Path
) -> None:
    sampling = _sampling(max_new_tokens=24, temperature=0.0)
    engine._sampling = sampling
    limits = [24] * len(prompts)
    other = TransformersEngine(tiny_llama, ModelSettings(base=str(tiny_llama)), sampling, CPU)
    ours, theirs = _answers(engine, prompts, limits), _answers(other, prompts, limits)
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= len(prompts) // 2
    model = load_model(tiny_llama, ModelSettings(base=str(tiny_llama))).eval()
    for prompt, ours_here, theirs_here in zip(prompts, ours, theirs, strict=True):
        # at the first difference, both tokens must be equally likely up to rounding
        pairs = list(zip(ours_here.token_ids, theirs_here.token_ids, strict=False))
        index = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
        if index is not None:
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + ours_here.token_ids[:index]])).logits[0, -1]
            assert abs(float(logits[pairs[index][0]] - logits[pairs[index][1]])) < TOLERANCE


def test_no_answer_is_shorter_than_the_minimum(engine: VllmEngine, prompts: list[list[int]]) -> None:
    engine._sampling = _sampling(max_new_tokens=24, min_new_tokens=12)
    assert min(len(answer.token_ids) for answer in _answers(engine, prompts, [24] * len(prompts))) >= 12


def test_a_stop_string_ends_an_answer_with_its_own_finish_reason(
    engine: VllmEngine, prompts: list[list[int]], tiny_llama: Path
) -> None:
    engine._sampling = _sampling(max_new_tokens=24, stop=["e", "t", "a"])
    tokenizer = load_tokenizer(tiny_llama, ModelSettings(base=str(tiny_llama)))
    answers = _answers(engine, prompts, [24] * len(prompts))
    stopped = [answer for answer in answers if answer.finish_reason == "stop_string"]
    assert stopped
    for answer in stopped:
        assert any(text in tokenizer.decode(answer.token_ids) for text in ("e", "t", "a"))
        assert answer.token_ids[-1] != EOS


def test_a_run_with_vllm_completes_like_one_with_transformers(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(generation={"engine": "vllm", "shards": 1})
    run = play(settings)
    assert read_manifest(run, "iterations/0/generations/00000.json").facts["engine"] == "vllm"
    facts = read_manifest(run, "iterations/0/ref_logprobs/00000.json").facts
    assert 0.0 < facts["sampler_difference"] < TOLERANCE  # two engines never round alike
    base, trained = val_losses(run)
    assert trained < base
    assert losses(run)[0] == pytest.approx(math.log(2), abs=STEP_ZERO_TOLERANCE["float32"])


def test_sampled_tokens_are_likely_under_their_model(
    engine: VllmEngine, prompts: list[list[int]], tiny_llama: Path
) -> None:
    # mean log-probability of sampled tokens is minus the entropy; uniform over 512 tokens would give -6.24
    engine._sampling = _sampling(max_new_tokens=24)
    answers = _answers(engine, prompts, [24] * len(prompts))
    model = load_model(tiny_llama, ModelSettings(base=str(tiny_llama))).eval()
    rows = [Prompted(prompt, (answer.token_ids,)) for prompt, answer in zip(prompts, answers, strict=True)]
    with torch.inference_mode():
        logprobs = answer_logprobs(model, rows)
        logits = model(torch.tensor([prompts[0]])).logits[0, -1]
    entropy = float(-(logits.softmax(-1) * logits.log_softmax(-1)).sum())
    num_tokens = sum(len(answer.token_ids) for answer in answers)
    # entropies of other places differ by tenths, and a mean of hundreds of tokens has one of spread
    assert float(logprobs.sum()) / num_tokens == pytest.approx(-entropy, abs=0.5)
    assert [answer.logprob for answer in answers] == pytest.approx(logprobs.tolist(), abs=TOLERANCE)


def test_log_probabilities_are_those_of_the_model_without_warping(
    engine: VllmEngine, prompts: list[list[int]], tiny_llama: Path
) -> None:
    engine._sampling = _sampling(
        max_new_tokens=24, temperature=0.5, top_k=9, repetition_penalty=1.3, min_new_tokens=4, stop=["e", "t", "a"]
    )
    answers = _answers(engine, prompts, [24] * len(prompts))
    assert {answer.finish_reason for answer in answers} >= {"stop_string"}
    model = load_model(tiny_llama, ModelSettings(base=str(tiny_llama))).eval()
    rows = [Prompted(prompt, (answer.token_ids,)) for prompt, answer in zip(prompts, answers, strict=True)]
    with torch.inference_mode():
        expected = answer_logprobs(model, rows).tolist()
    assert [answer.logprob for answer in answers] == pytest.approx(expected, abs=TOLERANCE)


def test_an_abandoned_call_does_not_affect_the_next(engine: VllmEngine, prompts: list[list[int]]) -> None:
    engine._sampling = _sampling(max_new_tokens=24)
    given_up = engine.generate(prompts, [24] * len(prompts))
    next(given_up)
    given_up.close()  # type: ignore[attr-defined]
    assert len(_answers(engine, prompts[:3], [24] * 3)) == 3


def test_pairs_of_a_run_contain_the_sampled_ids(make_settings: Callable[..., Settings]) -> None:
    run = play(make_settings())
    pairs = read_rows(run.path("iterations/0/generations/00000.parquet"), Pair)
    assert {pair.finish_reason for pair in pairs} <= {"stop", "length"}
    assert all(pair.generated_ids[-1] == EOS for pair in pairs if pair.finish_reason == "stop")
