"""The judge against a real server that speaks chat completions: scores, retries, refusals, replies without a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from judge_server import KEY, Answer, JudgeServer
from spin_components.data.shards import Judgment
from spin_components.errors import ConfigError, EngineError, SpinError
from spin_components.evaluate.judge import Judge, Question, asked, judge_figures, read_score
from spin_components.evaluation_settings import EvaluationSettings

SOON = {"retry-after-ms": "5"}
QUESTIONS = [Question(index, f"prompt {index}", f"answer {index}", f"human {index}") for index in (3, 7, 8)]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., JudgeServer]]:
    """Starts servers; none of this process's own variables matter."""
    for name in ("SPIN_JUDGE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    servers: list[JudgeServer] = []

    def start(*arguments: Any, **options: Any) -> JudgeServer:
        servers.append(JudgeServer(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def judged(url: str, *, retries: int = 2, model: str = "judge", **settings: Any) -> list[Judgment]:
    judge = Judge(EvaluationSettings(judge_url=url, judge_model=model, **settings), max_retries=retries)
    try:
        return judge.judge(QUESTIONS)
    finally:
        judge.close()


def scores(verdicts: list[Judgment]) -> list[float | None]:
    return [verdict.score for verdict in verdicts]


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Clear and short.\nScore: 7", 7),
        ("**Score:** 8/10", 8),
        ("score = 6.5", 6.5),
        ('{"reason": "fine", "score": 9}', 9),
        ("The score is 4.", 4),
        ("Score: 3 at first sight, but after all\nScore: 6", 6),
        ("Good. [[10]]", 10),
        ("I would say 2/10", 2),
        (" 7 ", 7),
        ("7/10.", 7),
        ("<think>Score: 1? no</think>Score: 9", 9),
        ("<think>Score: 1 and no end", None),
        ("Score: 100", None),
        ("Score: 0", None),
        ("Score: -3", None),
        ("11/10", None),
        ("There were 3 mistakes.", None),
        ("I cannot grade this.", None),
        ("", None),
    ],
)
def test_a_score_is_read_where_a_reply_has_one_from_1_to_10(reply: str, score: float | None) -> None:
    assert read_score(reply) == score


def test_what_stands_in_braces_in_a_text_is_left_as_it_is() -> None:
    question = Question(0, "say {answer}", 'print("{human} {x}")', "h")
    assert asked(question, "{prompt}|{answer}|{human}|{other}") == 'say {answer}|print("{human} {x}")|h|{other}'
    assert 'say {answer}\n\n[The answer to grade]\nprint("{human} {x}")' in asked(question, "")


def test_each_answer_is_scored_and_the_mean_has_a_standard_error(serve: Callable[..., JudgeServer]) -> None:
    replies = {"3": "Score: 2", "7": "Score: 4", "8": "Fine.\nScore: 9"}
    server = serve(lambda text: replies[text.split("answer ")[-1][0]])
    verdicts = judged(server.url, judge_template="{prompt} -> {answer}")
    assert verdicts == [Judgment(3, "Score: 2", 2.0), Judgment(7, "Score: 4", 4.0), Judgment(8, "Fine.\nScore: 9", 9.0)]
    assert sorted(request["messages"][0]["content"] for request in server.requests) == [
        "prompt 3 -> answer 3",
        "prompt 7 -> answer 7",
        "prompt 8 -> answer 8",
    ]
    # mean of 2, 4, 9 is 5; deviations -3, -1, 4: variance 26 / 2 = 13; standard error sqrt(13 / 3)
    assert judge_figures(verdicts) == {
        "mean": 5.0,
        "stderr": pytest.approx(math.sqrt(13 / 3)),
        "num_scored": 3,
        "num_unparsed": 0,
    }


def test_a_full_or_failing_server_is_asked_again(serve: Callable[..., JudgeServer]) -> None:
    server = serve(first=[Answer(429, headers=SOON), Answer(500, headers=SOON), Answer(503, b"<html>", SOON)])
    assert scores(judged(server.url, retries=3, judge_concurrency=1)) == [5, 5, 5]
    assert len(server.requests) == 3 + 3


def test_a_server_that_goes_on_failing_is_an_error(serve: Callable[..., JudgeServer]) -> None:
    server = serve(every=Answer(500, b'{"error": {"message": "out of memory"}}', SOON))
    with pytest.raises(EngineError, match=r"judge judge at http://127.*/v1 fails, also when asked again: .*out of mem"):
        judged(server.url)
    assert 3 <= len(server.requests) <= 3 * len(QUESTIONS)  # the first and 2 again; others may have been under way


def test_replies_without_a_score_are_counted(serve: Callable[..., JudgeServer]) -> None:
    server = serve(lambda text: "Score: 8" if "answer 7" in text else "As a language model, I …")
    verdicts = judged(server.url)
    assert scores(verdicts) == [None, 8, None]
    assert judge_figures(verdicts) == {"mean": 8.0, "stderr": None, "num_scored": 1, "num_unparsed": 2}


def test_no_score_at_all_is_an_error_that_shows_a_reply(serve: Callable[..., JudgeServer]) -> None:
    with pytest.raises(EngineError, match=r"replied 3 times without a score .*first reply: 'banana'.*judge_template"):
        judged(serve(lambda text: "banana").url)


def test_the_key_comes_from_the_environment(serve: Callable[..., JudgeServer], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(key=KEY)
    with pytest.raises(ConfigError, match=r"refuses a request without a key; put one into SPIN_JUDGE_API_KEY"):
        judged(server.url)
    monkeypatch.setenv("SPIN_JUDGE_API_KEY", KEY)
    assert scores(judged(server.url)) == [5, 5, 5]


def test_a_key_that_is_refused_is_not_shown(
    serve: Callable[..., JudgeServer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPIN_JUDGE_API_KEY", KEY)
    with pytest.raises(
        ConfigError, match=r"refuses the key in SPIN_JUDGE_API_KEY: .*wrong key: Bearer \*\*\*"
    ) as caught:
        judged(serve(key="another").url)
    assert caught.value.__cause__ is None
    assert KEY not in str(caught.value) + caplog.text


def test_a_model_or_path_that_is_not_there_is_refused_at_once(serve: Callable[..., JudgeServer]) -> None:
    server = serve()
    with pytest.raises(ConfigError, match=r"model gpt does not exist.*Check evaluation\.judge_url and .*judge_model"):
        judged(server.url, model="gpt", judge_concurrency=1)
    with pytest.raises(ConfigError, match=r"no such path: /chat/completions"):
        judged(server.url.removesuffix("/v1"), judge_concurrency=1)
    assert len(server.requests) <= 2 * len(QUESTIONS)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b'{"ok": true}'),
        Answer(200, b"<html>welcome</html>", {"Content-Type": "text/html"}),
        Answer(200, b'{"choices": []}'),
        Answer(200, b"{not json"),
    ],
)
def test_something_else_at_the_address_is_an_error(serve: Callable[..., JudgeServer], answer: Answer) -> None:
    with pytest.raises(SpinError, match=r"the judge judge at http://127"):
        judged(serve(every=answer).url, retries=0)


def test_nobody_at_the_address_is_an_error(serve: Callable[..., JudgeServer]) -> None:
    server = serve()
    server.close()
    with pytest.raises(
        EngineError, match=r"does not answer: .*Check evaluation\.judge_url; the same command asks again"
    ):
        judged(server.url, retries=0)


def test_a_server_that_is_silent_is_an_error(serve: Callable[..., JudgeServer]) -> None:
    server = serve(every=Answer(200, after_s=1.5))
    with pytest.raises(EngineError, match=r"does not answer: .*timed out"):
        judged(server.url, retries=0, judge_timeout_s=1)


def test_few_requests_are_under_way_at_once(serve: Callable[..., JudgeServer]) -> None:
    server = serve(takes_s=0.05)
    assert scores(judged(server.url, judge_concurrency=2)) == [5, 5, 5]
    assert server.most_at_once <= 2
