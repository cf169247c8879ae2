"""A judge behind an OpenAI-compatible endpoint: asked for a score of each answer, its replies read, failures told."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from spin_components.data.shards import Judgment
from spin_components.errors import ConfigError, EngineError, SpinError
from spin_components.evaluation_settings import JUDGE_KEY, EvaluationSettings

TEMPLATE = """You grade the answer that an assistant gave. Consider whether it does what was asked, is correct, clear \
and complete, and says no more than it needs to.

[What was asked]
{prompt}

[The answer to grade]
{answer}

Give one short sentence of reasons. Then write a last line with nothing but a whole number from 1 (useless) to 10 \
(could not be better), in this form:
Score: N"""
"""What a judge is asked where no other question is given."""

LOWEST, HIGHEST = 1.0, 10.0
MAX_RETRIES = 5
"""Of a request that meets a full or failing server: after 0.5 s, 1 s, 2 s, …, or as long as the server says."""

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_SCORE = re.compile(rf"(?:score|rating)[^\w-]{{0,6}}(?:is[^\w-]{{0,3}})?({_NUMBER})", re.IGNORECASE)
_BRACKETS = re.compile(rf"\[\[\s*({_NUMBER})\s*(?:/\s*10)?\s*\]\]")
_BARE = re.compile(rf"\W*({_NUMBER})\s*(?:/\s*10)?\W*")
_OUT_OF_TEN = re.compile(rf"(?<![\d.])({_NUMBER})\s*/\s*10(?![\d.])")
_THOUGHTS = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_PLACES = re.compile(r"\{(prompt|answer|human)\}")


@dataclass(frozen=True, slots=True)
class Question:
    """One answer to be judged.

    Attributes:
        index: of the record within the run.
        prompt: as the model saw it.
        answer: the model's.
        human: the person's.
    """

    index: int
    prompt: str
    answer: str
    human: str


def read_score(reply: str) -> float | None:
    """The score that a reply ends with; None where it has none from 1 to 10.

    Taken are, in this order, `Score: 7`, `[[7]]`, `7/10`, and a reply that is a number alone.
    """
    text = _THOUGHTS.sub("", reply).strip()
    for pattern in (_SCORE, _BRACKETS, _OUT_OF_TEN):
        if found := pattern.findall(text):
            return _in_range(found[-1])
    bare = _BARE.fullmatch(text)
    return _in_range(bare[1]) if bare else None


def _in_range(number: str) -> float | None:
    return float(number) if LOWEST <= float(number) <= HIGHEST else None


def asked(question: Question, template: str) -> str:
    """A question in full; what an answer says in braces is left as it is."""
    values = {"prompt": question.prompt, "answer": question.answer, "human": question.human}
    return _PLACES.sub(lambda place: values[place[1]], template or TEMPLATE)


class Judge:
    """Asks an endpoint, a few requests at a time; close it.

    Args:
        evaluation: endpoint, model, question, time limits.
        max_retries: of a request, where the server is full, fails or is silent.
    """

    def __init__(self, evaluation: EvaluationSettings, *, max_retries: int = MAX_RETRIES) -> None:
        import openai

        self._openai, self._evaluation = openai, evaluation
        self._key = os.environ.get(JUDGE_KEY, "")
        self._client = openai.OpenAI(
            base_url=evaluation.judge_url,
            api_key=self._key or "none",  # the client wants one; an endpoint without keys does not look
            max_retries=max_retries,
            timeout=evaluation.judge_timeout_s,
        )

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()

    def judge(self, questions: Sequence[Question], told: Callable[[int], None] = lambda done: None) -> list[Judgment]:
        """Have answers scored.

        Args:
            questions: at least one.
            told: called with how many are done.

        Returns: verdicts in the order of the questions; one whose reply holds no score has none.

        Raises:
            ConfigError: the endpoint refuses key, model or request.
            EngineError: it does not answer, fails after all retries, or none of its replies holds a score.
        """
        found: dict[int, Judgment] = {}
        pool = ThreadPoolExecutor(self._evaluation.judge_concurrency, thread_name_prefix="judge")
        try:
            places = {pool.submit(self._ask, question): place for place, question in enumerate(questions)}
            for done in as_completed(places):
                found[places[done]] = done.result()
                told(len(found))
        finally:
            pool.shutdown(cancel_futures=True)
        verdicts = [found[place] for place in range(len(questions))]
        if all(verdict.score is None for verdict in verdicts):
            raise EngineError(
                f"{self._name} replied {len(verdicts)} times without a score from 1 to 10; the first reply: "
                f"{_short(verdicts[0].reply)!r}. Take another evaluation.judge_model, or have "
                "evaluation.judge_template ask for a last line `Score: N`"
            )
        return verdicts

    def _ask(self, question: Question) -> Judgment:
        content = asked(question, self._evaluation.judge_template)
        try:
            response = self._client.chat.completions.create(
                model=self._evaluation.judge_model, messages=[{"role": "user", "content": content}], temperature=0
            )
        except (self._openai.OpenAIError, ValueError) as error:
            raise self._explained(error) from None  # its own text may hold what was sent
        try:
            reply = response.choices[0].message.content or ""
        except (AttributeError, IndexError, TypeError):
            raise EngineError(
                f"{self._name} does not answer as chat completions do: {self._without_key(_short(str(response)))!r}; "
                "an address usually ends in /v1"
            ) from None
        return Judgment(question.index, reply, read_score(reply))

    def _explained(self, error: Exception) -> SpinError:
        kinds = self._openai
        said = self._without_key(_short(str(error)))
        if isinstance(error, (kinds.AuthenticationError, kinds.PermissionDeniedError)):
            key = f"the key in {JUDGE_KEY}" if self._key else f"a request without a key; put one into {JUDGE_KEY}"
            return ConfigError(f"{self._name} refuses {key}: {said}")
        if isinstance(error, (kinds.BadRequestError, kinds.NotFoundError, kinds.UnprocessableEntityError)):
            return ConfigError(
                f"{self._name} refuses the request: {said}. Check evaluation.judge_url and evaluation.judge_model"
            )
        if isinstance(error, kinds.APIConnectionError):  # a timeout is one too
            cause = f": {error.__cause__}" if error.__cause__ else ""
            return EngineError(
                f"{self._name} does not answer: {said}{self._without_key(cause)}. Check evaluation.judge_url; "
                "the same command asks again"
            )
        return EngineError(f"{self._name} fails, also when asked again: {said}; the same command asks again")

    @property
    def _name(self) -> str:
        return f"the judge {self._evaluation.judge_model} at {self._evaluation.judge_url}"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def judge_figures(verdicts: Sequence[Judgment]) -> dict[str, Any]:
    """Mean score and its standard error, and how many replies had none."""
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    return {
        "mean": fmean(scores),
        "stderr": stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None,
        "num_scored": len(scores),
        "num_unparsed": len(verdicts) - len(scores),
    }


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
