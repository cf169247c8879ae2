"""Mistakes that implementations of SPIN made or could make, each with the test or check that detects it.

A mistake is a change of a function's source. It is planted by replacing the function's code object, so that modules
that imported the function before are affected too.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal

from parity.second_iteration import SecondIteration
from spin_components.algorithm import logprobs, packing
from spin_components.data import collate
from spin_components.data.rendering import Renderer
from spin_components.data.text_encoder import TextEncoder
from spin_components.engine import engine
from spin_components.errors import IntegrityError, SpinError, StepZeroError
from spin_components.generate import step as generate_step
from spin_components.model.scoring import all_answers
from spin_components.ref_logprob import pool
from spin_components.ref_logprob import step as ref_logprob_step
from spin_components.training import rank as worker
from unit.algorithm import test_logprobs, test_packing
from unit.data import test_collate, test_rendering
from unit.ref_logprob import test_pool

Area = Literal["template", "mask shift", "EOS", "reference weights", "history scoring"]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One planted mistake.

    Attributes:
        name: description.
        function: the function to change.
        before: text that occurs once in its source.
        after: the replacement.
        caught_by: the test, or the steps of a second iteration, that must fail.
        raises: the expected exception: AssertionError for a test, or the error of the run's own check.
    """

    area: Area
    name: str
    function: Any
    before: str
    after: str
    caught_by: Callable[..., None]
    raises: type[Exception] = AssertionError

    @property
    def is_caught_at_run_time(self) -> bool:
        """Whether a check in every run detects it, not only a test."""
        return issubclass(self.raises, SpinError)


@contextmanager
def planted(mutation: Mutation) -> Iterator[None]:
    """Plant the mistake until the end of the block."""
    function = mutation.function
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(mutation.before) == 1, (
        f"{function.__qualname__} does not contain exactly once: {mutation.before}"
    )
    tree = ast.parse("from __future__ import annotations\n" + source.replace(mutation.before, mutation.after))
    names = dict(function.__globals__)
    exec(compile(tree, f"<{mutation.name}>", "exec"), names)
    changed, sound = names[function.__name__].__code__, function.__code__
    assert changed.co_freevars == sound.co_freevars
    assert changed.co_code != sound.co_code or changed.co_consts != sound.co_consts
    function.__code__ = changed
    try:
        yield
    finally:
        function.__code__ = sound


def sampling_and_scoring(iteration: SecondIteration) -> None:
    """`generate`, then the check of the sampler in `ref-logprob`."""
    iteration.sample()
    iteration.score()


def scoring(iteration: SecondIteration) -> None:
    """The check of the sampler in `ref-logprob`, on correctly sampled answers."""
    iteration.score()


def training(iteration: SecondIteration) -> None:
    """The check of the first loss in `train-epoch`, on correct scores."""
    iteration.train()


def scoring_and_training(iteration: SecondIteration) -> None:
    iteration.score()
    iteration.train()


def _batches_of_llama() -> None:
    test_logprobs.test_batched_log_probabilities_equal_those_of_single_sequences("llama", "eager")


def _packed_llama() -> None:
    test_packing.test_packed_answers_score_as_single_sequences("llama", packing.PACKED)


MUTATIONS = [
    Mutation(
        "template",
        "the prompt is rendered without the header of the answer",
        Renderer.write,
        "self._apply(prompt, add_generation_prompt=True)",
        "self._apply(prompt, add_generation_prompt=False)",
        test_rendering.test_prompt_ids_are_those_of_the_chat_template,
    ),
    Mutation(
        "template",
        "an answer is encoded without its prompt",
        TextEncoder.encode_pairs,
        "is_apart = [each.ids[: len(prompt)] != prompt for",
        "is_apart = [True for",
        test_rendering.test_llama2_has_one_bos_and_its_answer_no_doubled_space,
    ),
    Mutation(
        "template",
        "special tokens in a message are not escaped",
        TextEncoder.escape,
        "return self._special.sub(",
        "return content or self._special.sub(",
        test_rendering.test_special_tokens_in_messages_are_plain_text,
        ValueError,  # reported by `prepare` with the record
    ),
    Mutation(
        "template",
        "generation drops the first token of the prompt",
        engine.collect_answers,
        "[prompt.prompt_ids for prompt in prompts]",
        "[prompt.prompt_ids[1:] for prompt in prompts]",
        sampling_and_scoring,
        IntegrityError,
    ),
    Mutation(
        "template",
        "generation doubles the first token of the prompt, like two BOS",
        engine.collect_answers,
        "[prompt.prompt_ids for prompt in prompts]",
        "[prompt.prompt_ids[:1] + prompt.prompt_ids for prompt in prompts]",
        sampling_and_scoring,
        IntegrityError,
    ),
    Mutation(
        "mask shift",
        "padded: logits are compared with the token before the predicted one",
        logprobs.align,
        "input_ids[:, longest_prompt:],",
        "input_ids[:, longest_prompt - 1 : -1],",
        _batches_of_llama,
    ),
    Mutation(
        "mask shift",
        "padded: the mask starts one token late",
        logprobs.align,
        "attention_mask[:, longest_prompt:].bool(),",
        "attention_mask[:, longest_prompt:].bool() & (torch.arange(longest_answer) > 0),",
        _batches_of_llama,
    ),
    Mutation(
        "mask shift",
        "packed: tokens are predicted from their own position",
        packing.pack,
        "[last, *range(first, first + len(answer_ids) - 1)]",
        "[*range(first, first + len(answer_ids))]",
        _packed_llama,
    ),
    Mutation(
        "mask shift",
        "packed: the second answer's positions continue from the first's",
        packing.pack,
        "range(len(prompt_ids), len(prompt_ids) + len(answer_ids))",
        "range(len(position_ids), len(position_ids) + len(answer_ids))",
        _packed_llama,
    ),
    Mutation(
        "mask shift",
        "collated: the mask includes padding",
        collate.spin_custom_collate,
        '_padded([item["mask"].bool() for item in batch], False)',
        '_padded([item["mask"].bool() for item in batch], True)',
        test_collate.test_a_batch_by_hand,
    ),
    Mutation(
        "mask shift",
        "the last token of every answer is not scored",
        all_answers,
        "pair.answers",
        "tuple(answer[:-1] or answer for answer in pair.answers)",
        scoring,
        IntegrityError,
    ),
    Mutation(
        "EOS",
        "human answers have no EOS",
        Renderer._finish,
        "actual_ids = [*answer_ids, text.eos_id]",
        "actual_ids = [*answer_ids]",
        test_rendering.test_prompt_ids_are_those_of_the_chat_template,
    ),
    Mutation(
        "EOS",
        "a truncated human answer has an EOS",
        Renderer._finish,
        "actual_ids[:limit], ended",
        "[*actual_ids[: limit - 1], text.eos_id], ended",
        test_rendering.test_a_cut_answer_has_no_eos,
    ),
    Mutation(
        "EOS",
        "EOS is masked like padding, because pad == eos",
        logprobs.align,
        "attention_mask[:, longest_prompt:].bool(),",
        "attention_mask[:, longest_prompt:].bool() & (input_ids[:, longest_prompt:] != 2),",
        test_logprobs.test_an_eos_that_is_also_the_pad_token_counts_like_any_other,
    ),
    Mutation(
        "EOS",
        "truncated generated answers get an EOS",
        generate_step._generate,
        "            answer.token_ids,\n",
        "            answer.token_ids + eos_ids[:1] * (answer.finish_reason == 'length'),\n",
        sampling_and_scoring,
        IntegrityError,
    ),
    Mutation(
        "reference weights",
        "answers are sampled from the base model",
        generate_step._generate,
        "open_model(step.run, reference_uri,",
        "open_model(step.run, step.run.read_json(layout.RUN)['base_model']['uri'],",
        sampling_and_scoring,
        IntegrityError,
    ),
    Mutation(
        "reference weights",
        "answers are scored by the base model",
        ref_logprob_step._scored_by,
        "open_scored(step.run, uri,",
        "open_scored(step.run, step.run.read_json(layout.RUN)['base_model']['uri'],",
        scoring,
        IntegrityError,
    ),
    Mutation(
        "reference weights",
        "training starts from the base model",
        worker._load,
        "load_scored(job.policy,",
        "load_scored(__import__('pathlib').Path(job.settings.model.base),",
        training,
        StepZeroError,
    ),
    Mutation(
        "reference weights",
        "the scores of the two answers are swapped",
        ref_logprob_step.score_pairs,
        "Score(pair.index, actual, generated, number,",
        "Score(pair.index, generated, actual, number,",
        scoring,
        IntegrityError,
    ),
    Mutation(
        "history scoring",
        "history pairs keep the scores of their own iteration's reference",
        ref_logprob_step.score_pairs,
        "Score(pair.index, actual, generated, number,",
        "Score(pair.index, actual, generated if pair.origin else pair.sampled_logprob, number,",
        scoring_and_training,
        StepZeroError,
    ),
    Mutation(
        "history scoring",
        "history pairs with an unchanged answer are counted twice",
        pool.pool_pairs,
        "chosen = np.sort(first[first >= 0])",
        "chosen = np.arange(len(history.rows))",
        test_pool.test_an_answer_that_came_again_is_kept_where_it_is_newest,
    ),
]
