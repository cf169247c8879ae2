"""The judge against a real server that speaks chat completions: scores, retries, refusals, replies without a score."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from spin_components.data.shards import Judgment
from spin_components.errors import ConfigError, EngineError, SpinError
from spin_components.evaluate.judge import Judge, Question, fill_template, judge_figures, read_score
from spin_components.settings.attempt import EvaluationSettings
from support.judge_server import KEY, Answer, JudgeServer

SOON = {"retry-after-ms": "5"}
QUESTIONS = [Question(index, f"prompt {index}", f"answer {index}", f"human {index}") for index in (3, 7, 8)]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., JudgeServer]]:
    """Function that starts servers, with the judge's environment variables unset."""
    for name in ("SPIN_JUDGE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    servers: list[JudgeServer] = []

    def start(*arguments: Any, **options: Any) -> JudgeServer:
        servers.append(JudgeServer(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def judge_all(url: str, *, retries: int = 2, model: str = "judge", **settings: Any) -> list[Judgment]:
    judge = Judge(EvaluationSettings(judge_url=url, judge_model=model, **settings), max_retries=retries)
    try:
        return judge.score(QUESTIONS)
    finally:
        judge.close()


def values(scores: list[Judgment]) -> list[float | None]:
    return [each.score for each in scores]


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
def test_scores_from_1_to_10_are_parsed(reply: str, score: float | None) -> None:
    assert read_score(reply) == score


def test_braces_in_texts_are_kept() -> None:
    question = Question(0, "say {answer}", 'print("{human} {x}")', "h")
    assert fill_template(question, "{prompt}|{answer}|{human}|{other}") == 'say {answer}|print("{human} {x}")|h|{other}'
    assert 'say {answer}\n\n[The answer to grade]\nprint("{human} {x}")' in fill_template(question, "")


def test_each_answer_is_scored_and_the_mean_has_a_standard_error(serve: Callable[..., JudgeServer]) -> None:
    replies = {"3": "Score: 2", "7": "Score: 4", "8": "Fine.\nScore: 9"}
    server = serve(lambda text: replies[text.split("answer ")[-1][0]])
    scores = judge_all(server.url, judge_template="{prompt} -> {answer}")
    assert scores == [Judgment(3, "Score: 2", 2.0), Judgment(7, "Score: 4", 4.0), Judgment(8, "Fine.\nScore: 9", 9.0)]
    assert sorted(request["messages"][0]["content"] for request in server.requests) == [
        "prompt 3 -> answer 3",
        "prompt 7 -> answer 7",
        "prompt 8 -> answer 8",
    ]
    # mean of 2, 4, 9 is 5; deviations -3, -1, 4: variance 26 / 2 = 13; standard error sqrt(13 / 3)
    assert judge_figures(scores) == {
        "mean": 5.0,
        "stderr": pytest.approx(math.sqrt(13 / 3)),
        "num_scored": 3,
        "num_unparsed": 0,
    }


def test_requests_to_an_overloaded_or_failing_server_are_retried(serve: Callable[..., JudgeServer]) -> None:
    server = serve(first=[Answer(429, headers=SOON), Answer(500, headers=SOON), Answer(503, b"<html>", SOON)])
    assert values(judge_all(server.url, retries=3, judge_concurrency=1)) == [5, 5, 5]
    assert len(server.requests) == 3 + 3


def test_a_server_that_keeps_failing_is_an_error(serve: Callable[..., JudgeServer]) -> None:
    server = serve(every=Answer(500, b'{"error": {"message": "out of memory"}}', SOON))
    with pytest.raises(EngineError, match=r"judge judge at http://127.*/v1 failed after all retries: .*out of mem"):
        judge_all(server.url)
    assert (
        3 <= len(server.requests) <= 3 * len(QUESTIONS)
    )  # one request and 2 retries; others may have been in progress


def test_replies_without_a_score_are_counted(serve: Callable[..., JudgeServer]) -> None:
    server = serve(lambda text: "Score: 8" if "answer 7" in text else "As a language model, I …")
    scores = judge_all(server.url)
    assert values(scores) == [None, 8, None]
    assert judge_figures(scores) == {"mean": 8.0, "stderr": None, "num_scored": 1, "num_unparsed": 2}


def test_an_error_without_any_score_shows_a_reply(serve: Callable[..., JudgeServer]) -> None:
    with pytest.raises(EngineError, match=r"sent 3 replies without a score .*first reply: 'banana'.*judge_template"):
        judge_all(serve(lambda text: "banana").url)


def test_the_key_comes_from_the_environment(serve: Callable[..., JudgeServer], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(key=KEY)
    with pytest.raises(ConfigError, match=r"refuses a request without a key; set SPIN_JUDGE_API_KEY"):
        judge_all(server.url)
    monkeypatch.setenv("SPIN_JUDGE_API_KEY", KEY)
    assert values(judge_all(server.url)) == [5, 5, 5]


def test_a_refused_key_is_not_shown(
    serve: Callable[..., JudgeServer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPIN_JUDGE_API_KEY", KEY)
    with pytest.raises(
        ConfigError, match=r"refuses the key in SPIN_JUDGE_API_KEY: .*wrong key: Bearer \*\*\*"
    ) as caught:
        judge_all(serve(key="another").url)
    assert caught.value.__cause__ is None
    assert KEY not in str(caught.value) + caplog.text


def test_an_unknown_model_or_path_is_not_retried(serve: Callable[..., JudgeServer]) -> None:
    server = serve()
    with pytest.raises(ConfigError, match=r"model gpt does not exist.*Check evaluation\.judge_url and .*judge_model"):
        judge_all(server.url, model="gpt", judge_concurrency=1)
    with pytest.raises(ConfigError, match=r"no such path: /chat/completions"):
        judge_all(server.url.removesuffix("/v1"), judge_concurrency=1)
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
def test_another_server_at_the_address_is_an_error(serve: Callable[..., JudgeServer], answer: Answer) -> None:
    with pytest.raises(SpinError, match=r"the judge judge at http://127"):
        judge_all(serve(every=answer).url, retries=0)


def test_a_refused_connection_is_an_error(serve: Callable[..., JudgeServer]) -> None:
    server = serve()
    server.close()
    with pytest.raises(
        EngineError, match=r"does not respond: .*Check evaluation\.judge_url, then run the same command"
    ):
        judge_all(server.url, retries=0)


def test_a_silent_server_is_an_error(serve: Callable[..., JudgeServer]) -> None:
    server = serve(every=Answer(200, after_s=600.0))
    with pytest.raises(EngineError, match=r"does not respond: .*timed out"):
        judge_all(server.url, retries=0, judge_timeout_s=1)


def test_the_number_of_concurrent_requests_is_limited(serve: Callable[..., JudgeServer]) -> None:
    server = serve(takes_s=0.05)
    assert values(judge_all(server.url, judge_concurrency=2)) == [5, 5, 5]
    assert server.most_at_once <= 2


COMPLETION = b'{"id": "c", "object": "chat.completion", "created": 1, "model": "judge", "choices": [{"index": 0, '
COMPLETION += b'"finish_reason": "stop", "message": {"role": "assistant", "content": "Score: 5"}}]}'


def test_a_judge_that_never_ends_its_replies_costs_only_those_scores(
    serve: Callable[..., JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spin_components.evaluate.judge.CALL_TIMEOUTS", 1)
    endless = Answer(200, COMPLETION + b" " * 10_000, piece_bytes=1, pause_s=0.3)  # each read is within its timeout
    server = serve(first=[endless])
    assert sorted(values(judge_all(server.url, judge_timeout_s=2, judge_concurrency=1)), key=str) == [5, 5, None]


def test_a_judge_whose_replies_all_take_too_long_is_an_error(
    serve: Callable[..., JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spin_components.evaluate.judge.CALL_TIMEOUTS", 1)
    server = serve(every=Answer(200, b" " * 10_000, piece_bytes=1, pause_s=0.3))
    with pytest.raises(EngineError, match=r"does not respond: 3 calls timed out.*judge_timeout_s \(1 s\)"):
        judge_all(server.url, judge_timeout_s=1)


def test_a_reply_that_is_too_large_is_not_read(
    serve: Callable[..., JudgeServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(first=[Answer(200, COMPLETION + b" " * (3 << 20))])
    assert sorted(values(judge_all(server.url, retries=0, judge_concurrency=1)), key=str) == [5, 5, None]
    assert "1 of 3 calls had no usable reply in time" in caplog.text


def test_a_compressed_reply_that_grows_is_not_read(serve: Callable[..., JudgeServer]) -> None:
    bomb = gzip.compress(COMPLETION + b" " * (100 << 20), 1)
    assert len(bomb) > 64 << 10
    server = serve(every=Answer(200, bomb, {"Content-Encoding": "gzip"}))
    with pytest.raises(EngineError, match=r"does not respond: 3 calls"):
        judge_all(server.url, retries=0)


def test_a_redirect_to_another_host_is_not_followed(
    serve: Callable[..., JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIN_JUDGE_API_KEY", KEY)
    other = serve()
    location = other.url.replace("127.0.0.1", "localhost") + "/chat/completions"
    server = serve(every=Answer(307, headers={"Location": location}))
    with pytest.raises(ConfigError, match=r"is not there: it redirects to http://localhost\. Prompts and key"):
        judge_all(server.url, retries=0)
    assert other.requests == []


def test_a_redirect_on_the_same_host_is_followed(serve: Callable[..., JudgeServer]) -> None:
    target = serve()
    server = serve(every=Answer(307, headers={"Location": f"{target.url}/chat/completions"}))
    assert values(judge_all(server.url, retries=0)) == [5, 5, 5]


def test_a_reply_that_repeats_the_key_is_kept_without_it(
    serve: Callable[..., JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIN_JUDGE_API_KEY", KEY)
    scores = judge_all(serve(lambda text: f"Your key is {KEY}. Score: 4", key=KEY).url)
    assert [each.reply for each in scores] == ["Your key is ***. Score: 4"] * 3
    far = "x" * 290 + KEY  # a message is cut inside the key
    with pytest.raises(EngineError) as caught:
        judge_all(serve(every=Answer(500, json.dumps({"error": {"message": far}}).encode())).url, retries=0)
    assert KEY[:8] not in str(caught.value)
