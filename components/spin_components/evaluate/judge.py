"""LLM judge: scores answers through an OpenAI-compatible chat completions endpoint."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from spin_components.data.shards import Judgment
from spin_components.errors import ConfigError, EngineError, SpinError
from spin_components.evaluate.judge_client import RedirectedError, ReplyTooLargeError, connect
from spin_components.evaluate.timed_calls import timed_calls
from spin_components.settings.attempt import JUDGE_KEY, EvaluationSettings

logger = logging.getLogger(__name__)

TEMPLATE = """You grade the answer that an assistant gave. Consider whether it does what was asked, is correct, clear \
and complete, and says no more than it needs to.

[What was asked]
{prompt}

[The answer to grade]
{answer}

Give one short sentence of reasons. Then write a last line with nothing but a whole number from 1 (useless) to 10 \
(could not be better), in this form:
Score: N"""
"""Default prompt of the judge."""

LOWEST, HIGHEST = 1.0, 10.0
MAX_RETRIES = 5
"""Retries of a request to an overloaded or failing server, after 0.5 s, 1 s, 2 s, …, or the time the server states."""
CALL_TIMEOUTS = 3
"""Limit of a call with its retries, in timeouts of one request (`evaluation.judge_timeout_s`)."""
MAX_UNANSWERED = 4
"""Number of unanswered calls after which a judge that has answered none is given up."""

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_SCORE = re.compile(rf"(?:score|rating)[^\w-]{{0,6}}(?:is[^\w-]{{0,3}})?({_NUMBER})", re.IGNORECASE)
_BRACKETS = re.compile(rf"\[\[\s*({_NUMBER})\s*(?:/\s*10)?\s*\]\]")
_BARE = re.compile(rf"\W*({_NUMBER})\s*(?:/\s*10)?\W*")
_OUT_OF_TEN = re.compile(rf"(?<![\d.])({_NUMBER})\s*/\s*10(?![\d.])")
_THOUGHTS = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_PLACEHOLDERS = re.compile(r"\{(prompt|answer|human)\}")


@dataclass(frozen=True, slots=True)
class Question:
    """One answer to be scored.

    Attributes:
        index: index of the prompt within the run.
        prompt: prompt with chat template.
        answer: answer of the model.
        human: human answer.
    """

    index: int
    prompt: str
    answer: str
    human: str


def read_score(reply: str) -> float | None:
    """Parse the last score in a reply; None if there is none from 1 to 10.

    Accepted forms are, in this order, `Score: 7`, `[[7]]`, `7/10`, and a reply that is only a number.
    """
    text = _THOUGHTS.sub("", reply).strip()
    for pattern in (_SCORE, _BRACKETS, _OUT_OF_TEN):
        if matches := pattern.findall(text):
            return _in_range(matches[-1])
    bare = _BARE.fullmatch(text)
    return _in_range(bare[1]) if bare else None


def _in_range(number: str) -> float | None:
    return float(number) if LOWEST <= float(number) <= HIGHEST else None


def fill_template(question: Question, template: str) -> str:
    """Insert prompt and answers into a template; braces in the inserted texts are kept."""
    values = {"prompt": question.prompt, "answer": question.answer, "human": question.human}
    return _PLACEHOLDERS.sub(lambda match: values[match[1]], template or TEMPLATE)


class Judge:
    """Client of the judge's endpoint with concurrent requests; must be closed.

    Args:
        evaluation: endpoint, model, template, concurrency and timeout.
        max_retries: maximum number of retries of a request.
    """

    def __init__(self, evaluation: EvaluationSettings, *, max_retries: int = MAX_RETRIES) -> None:
        import openai

        self._openai, self._evaluation = openai, evaluation
        self._key = os.environ.get(JUDGE_KEY, "")
        self._client = connect(
            evaluation.judge_url, key=self._key, timeout_s=evaluation.judge_timeout_s, max_retries=max_retries
        )

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def score(
        self, questions: Sequence[Question], on_progress: Callable[[int], None] = lambda num_done: None
    ) -> list[Judgment]:
        """Score answers.

        Args:
            questions: at least one answer.
            on_progress: called with the number of scored answers.

        Returns: scores in the order of the questions; `score` is None for a reply without a score, and for a call
            without a reply: one that took too long, or whose reply was too large.

        Raises:
            ConfigError: the endpoint refuses the key, the model or the request, or redirects to another host.
            EngineError: the endpoint does not respond, fails after all retries, or no reply has a score.
        """
        by_position: dict[int, Judgment] = {}
        limit_s = CALL_TIMEOUTS * self._evaluation.judge_timeout_s
        concurrency = self._evaluation.judge_concurrency
        num_unanswered = 0
        for position, answered in timed_calls(self._ask, questions, concurrency=concurrency, limit_s=limit_s):
            num_unanswered += answered is None
            by_position[position] = answered or Judgment(questions[position].index, "", None)
            on_progress(len(by_position))
            if num_unanswered == len(by_position) >= min(max(MAX_UNANSWERED, concurrency), len(questions)):
                raise EngineError(
                    f"{self._name} does not respond: {num_unanswered} calls timed out, or had replies that are too "
                    f"large. Check evaluation.judge_url and evaluation.judge_timeout_s "
                    f"({self._evaluation.judge_timeout_s} s), then run the same command to retry"
                )
        if num_unanswered:
            logger.warning("%s: %d of %d calls had no usable reply in time", self._name, num_unanswered, len(questions))
        scores = [by_position[position] for position in range(len(questions))]
        if all(each.score is None for each in scores):
            reply = next((each.reply for each in scores if each.reply), "")
            raise EngineError(
                f"{self._name} sent {len(scores)} replies without a score from 1 to 10; the first reply: "
                f"{_short(reply)!r}. Use another evaluation.judge_model, or an evaluation.judge_template "
                "that asks for a last line `Score: N`"
            )
        return scores

    def _ask(self, question: Question) -> Judgment | None:
        """Score one answer; None where the judge gives no usable reply in time."""
        content = fill_template(question, self._evaluation.judge_template)
        try:
            response = self._client.chat.completions.create(
                model=self._evaluation.judge_model, messages=[{"role": "user", "content": content}], temperature=0
            )
        except (self._openai.OpenAIError, ValueError, ReplyTooLargeError, RedirectedError) as error:
            causes = (error, error.__cause__)  # some releases of the client raise its own error from the cause
            if any(isinstance(each, (self._openai.APITimeoutError, ReplyTooLargeError)) for each in causes):
                return None
            raise self._explained(error) from None  # the original message may contain the key
        try:
            reply = response.choices[0].message.content or ""
        except (AttributeError, IndexError, TypeError):
            raise EngineError(
                f"{self._name} returned no chat completion: {_short(self._without_key(str(response)))!r}; "
                "check evaluation.judge_url, which usually ends in /v1"
            ) from None
        return Judgment(question.index, self._without_key(reply), read_score(reply))

    def _explained(self, error: Exception) -> SpinError:
        openai = self._openai
        message = _short(self._without_key(str(error)))
        if isinstance(redirected := error.__cause__ or error, RedirectedError):
            return ConfigError(
                f"{self._name} is not there: {redirected}. Prompts and key are sent to no other host; set "
                "evaluation.judge_url to the address that is meant"
            )
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            key = f"the key in {JUDGE_KEY}" if self._key else f"a request without a key; set {JUDGE_KEY}"
            return ConfigError(f"{self._name} refuses {key}: {message}")
        if isinstance(error, (openai.BadRequestError, openai.NotFoundError, openai.UnprocessableEntityError)):
            return ConfigError(
                f"{self._name} refuses the request: {message}. Check evaluation.judge_url and evaluation.judge_model"
            )
        if isinstance(error, openai.APIConnectionError):
            cause = f": {_short(self._without_key(str(error.__cause__)))}" if error.__cause__ else ""
            return EngineError(
                f"{self._name} does not respond: {message}{cause}. Check evaluation.judge_url, then "
                "run the same command to retry"
            )
        return EngineError(f"{self._name} failed after all retries: {message}; run the same command to retry")

    @property
    def _name(self) -> str:
        return f"the judge {self._evaluation.judge_model} at {self._evaluation.judge_url}"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def judge_figures(scores: Sequence[Judgment]) -> dict[str, Any]:
    """Return the mean score, its standard error, and the numbers of replies with and without a score."""
    values = [each.score for each in scores if each.score is not None]
    return {
        "mean": fmean(values),
        "stderr": stdev(values) / len(values) ** 0.5 if len(values) > 1 else None,
        "num_scored": len(values),
        "num_unparsed": len(scores) - len(values),
    }


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
