from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM

from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import Prompted
from spin_components.engine.engine import Answer, Sampling
from spin_components.engine.transformers_engine import TransformersEngine
from spin_components.model.compute import Compute
from spin_components.model.folder import load_tokenizer
from spin_components.model.loading import load_model
from spin_components.settings.generation import GenerationSettings
from spin_components.settings.run import ModelSettings
from support import bounds
from support.families import CONFIGS, model_of

CPU = Compute(torch.device("cpu"), "float32")
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20], [5, 6, 7], [40, 41], [63, 62, 61, 60, 59], [7, 7, 7, 7], [33, 2, 9]]
LIMITS = [12, 9, 12, 5, 12, 1, 12]

Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Folders of tiny models, by family."""

    def save(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        model_of(family).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tiny_llama / name, folder / name)
        return folder

    return save


def _engine(folder: Path, *, eos_ids: list[int], seed: int = 3, **settings: Any) -> TransformersEngine:
    sampling = Sampling(GenerationSettings(**{"max_new_tokens": 12, "batch_size": 3, **settings}), eos_ids, seed)
    return TransformersEngine(folder, ModelSettings(base=str(folder)), sampling, CPU)


def _answers(
    engine: TransformersEngine, prompts: list[list[int]], limits: list[int], numbers: range | None = None
) -> list[Answer]:
    indexed = list(engine.generate(prompts, limits, numbers=numbers))
    assert sorted(index for index, _ in indexed) == list(range(len(prompts)))
    return [answer for _, answer in sorted(indexed, key=lambda each: each[0])]


def _logged(answers: list[Answer]) -> list[tuple[list[int], float]]:
    """Tokens and log-probabilities, which an answer's equality leaves out."""
    return [(answer.token_ids, answer.logprob) for answer in answers]


class _Alone(NamedTuple):
    """What transformers answers to one prompt without a batch, and by which scores."""

    token_ids: list[int]
    scores: list[Tensor]


def _alone(model: Any, prompt: list[int], limit: int, **options: Any) -> _Alone:
    ids = torch.tensor([prompt])
    asked = {"max_new_tokens": limit, "do_sample": False, "pad_token_id": 0, **options}
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_scores=True, **asked
    )
    return _Alone(output.sequences[0, len(prompt) :].tolist(), [scores[0] for scores in output.scores])


def _assert_same(model: Any, answers: list[Answer], expected: list[_Alone]) -> None:
    """Token by token, up to ties."""
    bound = bounds.of_logit(model)
    assert bound < 1e-3  # ties are rare: scores here lie tenths apart
    for answer, other in zip(answers, expected, strict=True):
        assert bounds.same_but_for_ties(answer.token_ids, other.token_ids, other.scores, bound)


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_answers_are_those_of_transformers_token_by_token(family: str, saved: Saved) -> None:
    model = model_of(family)
    free = [_alone(model, p, limit, eos_token_id=None).token_ids for p, limit in zip(PROMPTS, LIMITS, strict=True)]
    eos_ids = [free[0][3], free[2][6]]  # so that answers end at different steps and rows are reused
    engine = _engine(saved(family), eos_ids=eos_ids, temperature=0.0)
    assert engine._fallback is None
    answers = _answers(engine, PROMPTS, LIMITS)
    expected = [_alone(model, p, limit, eos_token_id=eos_ids) for p, limit in zip(PROMPTS, LIMITS, strict=True)]
    _assert_same(model, answers, expected)
    reasons = ["stop" if answer.token_ids[-1] in eos_ids else "length" for answer in answers]
    assert [answer.finish_reason for answer in answers] == reasons
    assert set(reasons) == {"stop", "length"}


@pytest.mark.parametrize("family", CONFIGS)
def test_an_answers_log_probability_is_that_of_the_unwarped_model(family: str, saved: Saved) -> None:
    engine = _engine(saved(family), eos_ids=[2], temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.2)
    answers = _answers(engine, PROMPTS, LIMITS)
    groups = [Prompted(prompt, (answer.token_ids,)) for prompt, answer in zip(PROMPTS, answers, strict=True)]
    model = model_of(family)
    with torch.no_grad():
        expected = answer_logprobs(model, groups)
    atol = bounds.of_logprob(model, max(LIMITS))
    torch.testing.assert_close(torch.tensor([a.logprob for a in answers]), expected, rtol=0.0, atol=atol)
    assert atol < 0.01  # one warper taken for the model's own, or a token left out, is worth tenths


def _same_draws(
    model: Any, prompt: list[int], found: list[int], expected: list[int], random: np.random.Generator
) -> bool:
    """Whether two sampled answers are one, or part where a random number lies between two tokens but for rounding."""
    for place, (one, other) in enumerate(zip(found, expected, strict=False)):
        drawn = random.random()
        if one != other:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + found[:place]])).logits[0, -1].double()
            ends = logits.softmax(-1).cumsum(-1)[min(one, other) : max(one, other)]
            # probabilities have twice the relative error of their logits, and add up to 1
            return float((ends - drawn).abs().max()) <= 2 * bounds.of_logit(model)
    return len(found) == len(expected)


def test_a_penalty_and_a_minimum_are_those_of_transformers(saved: Saved) -> None:
    model = model_of("llama")
    first = _alone(model, PROMPTS[0], 1, eos_token_id=None).token_ids
    options = {"repetition_penalty": 1.5, "min_new_tokens": 4, "eos_token_id": first}
    engine = _engine(
        saved("llama"), eos_ids=first, temperature=0.0, repetition_penalty=1.5, min_new_tokens=4, batch_size=7
    )
    expected = [_alone(model, prompt, 12, **options) for prompt in PROMPTS]
    _assert_same(model, _answers(engine, PROMPTS, [12] * len(PROMPTS)), expected)


def test_answers_depend_on_the_seed_and_the_prompts_number_not_on_the_batch(saved: Saved) -> None:
    folder, model = saved("llama"), model_of("llama")
    one, *others = (
        _answers(_engine(folder, eos_ids=[2, 3, 4], batch_size=size), PROMPTS, LIMITS) for size in (3, 64, 1)
    )
    for found in others:
        for number, (answer, expected) in enumerate(zip(found, one, strict=True)):
            random = np.random.Generator(np.random.Philox(key=[3, number]))
            assert _same_draws(model, PROMPTS[number], answer.token_ids, expected.token_ids, random)
    engine = _engine(folder, eos_ids=[2, 3, 4])
    assert _answers(engine, PROMPTS, LIMITS) == one
    later = _answers(engine, PROMPTS, LIMITS, numbers=range(7, 14))
    assert later != one, "other numbers are other random numbers"
    assert _logged(_answers(engine, PROMPTS, LIMITS)) == _logged(one), "a call depends on none before it"
    assert _logged(_answers(engine, PROMPTS, LIMITS, numbers=range(7, 14))) == _logged(later)
    assert _answers(_engine(folder, eos_ids=[2, 3, 4], seed=4), PROMPTS, LIMITS) != one


def test_token_frequencies_follow_the_models_distribution(saved: Saved) -> None:
    num = 2000
    engine = _engine(saved("llama"), eos_ids=[2], temperature=1.0, batch_size=500)
    tokens = torch.tensor([answer.token_ids[0] for answer in _answers(engine, [[5, 6, 7]] * num, [1] * num)])
    with torch.no_grad():
        expected = model_of("llama")(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    counts = torch.bincount(tokens, minlength=64)
    deviations = (counts - num * expected) / (num * expected * (1 - expected)).sqrt()
    assert float(deviations.abs().max()) < 4.5
    assert float((deviations**2).mean()) == pytest.approx(1, abs=0.6)  # chi-square of 63 degrees: 1 +- 0.18


def test_an_answer_ends_with_the_token_that_completes_a_stop_string(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama, ModelSettings(base=str(tiny_llama)))
    prompts = [tokenizer(f"What does function {number} do?")["input_ids"] for number in range(12)]
    # one row at a time, so that both engines compute the same batches, to the bit
    free = _answers(_engine(tiny_llama, eos_ids=[2], batch_size=1), prompts, [12] * 12)
    answers = _answers(_engine(tiny_llama, eos_ids=[2], batch_size=1, stop=["e", "th"]), prompts, [12] * 12)
    assert "stop_string" in {answer.finish_reason for answer in answers}
    for answer, whole in zip(answers, free, strict=True):
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
        before, text = tokenizer.decode(answer.token_ids[:-1]), tokenizer.decode(answer.token_ids)
        assert not any(stop in before for stop in ("e", "th"))
        assert (answer.finish_reason == "stop_string") == any(stop in text for stop in ("e", "th"))


@pytest.fixture
def bloom(saved: Saved, tmp_path: Path) -> Path:
    """A model whose positions are a bias of the scores, which slot attention does not support."""
    shutil.copytree(saved("llama"), tmp_path, dirs_exist_ok=True)
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_call_of_the_fallback_depends_on_none_before_it(bloom: Path) -> None:
    engine = _engine(bloom, eos_ids=[2])
    assert engine._fallback is not None
    one, other = (_answers(engine, PROMPTS, LIMITS, numbers=range(start, start + 7)) for start in (0, 7))
    assert one != other
    assert _logged(_answers(engine, PROMPTS, LIMITS)) == _logged(one)
    assert _logged(_answers(_engine(bloom, eos_ids=[2]), PROMPTS, LIMITS, numbers=range(7, 14))) == _logged(other)


def test_an_unsupported_architecture_falls_back_to_transformers_generate(bloom: Path) -> None:
    engine = _engine(bloom, eos_ids=[2], temperature=0.0)
    assert engine._fallback is not None
    answers = _answers(engine, PROMPTS, LIMITS)
    model = load_model(bloom, ModelSettings(base=str(bloom))).eval()
    expected = [_alone(model, p, limit, eos_token_id=2) for p, limit in zip(PROMPTS, LIMITS, strict=True)]
    _assert_same(model, answers, expected)
    groups = [Prompted(prompt, (answer.token_ids,)) for prompt, answer in zip(PROMPTS, answers, strict=True)]
    with torch.no_grad():
        logprobs = answer_logprobs(model, groups)
    atol = bounds.of_logprob(model, max(LIMITS))
    torch.testing.assert_close(torch.tensor([a.logprob for a in answers]), logprobs, rtol=0.0, atol=atol)
