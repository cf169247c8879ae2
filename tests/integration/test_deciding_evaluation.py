"""Runs whose verdicts are the evaluation's: a judge, or a task of the harness."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from rich.console import Console

from spin_components.errors import ConfigError, EngineError
from spin_components.record.evaluated import read_evaluated
from spin_components.report.page import build_page
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_pipeline.runs.compare import compare_runs
from spin_pipeline.runs.garbage import collect_garbage
from spin_pipeline.runs.status import read_status
from spin_pipeline.watch.tables import print_status
from support.judge_server import Answer, JudgeServer
from support.playing import begin, play, play_anywhere
from support.small import small_settings
from support.task_folder import CHOICE, write_tasks

MakeSettings = Callable[..., Settings]
QUESTIONS = ["Return the", "The file is", "A list of", "Raise an", "The name of", "Close the", "Open a", "Write all"]
ROWS = [{"question": text, "choices": ["value", "module", "error"], "gold": n % 3} for n, text in enumerate(QUESTIONS)]
DOWN = Answer(503, b'{"error": {"message": "no GPU left"}}', {"retry-after-ms": "5"})
LOW = [3.0, 4.0] * 4
"""The judge's scores of eight answers."""


def settings_of(root: Path, model: Path, data: Path, /, **sections: Any) -> Settings:
    """Settings of one iteration, with eight sampled answers."""
    given: dict[str, Any] = {
        "data": {"max_train_records": 8, "validation_size": 8},
        "generation": {"max_new_tokens": 6},
        "validation": {"num_samples": 8},
        "hardware": {"threads": 1},
    }
    return small_settings(root, model, data, **{**given, **sections})


def judged(server: JudgeServer, **selection: Any) -> dict[str, Any]:
    """Tables of a run that a judge decides, which is asked in the order of the answers."""
    evaluation = {"judge_url": server.url, "judge_model": "judge", "judge_concurrency": 1, "judge_timeout_s": 10}
    limits = {"max_length_ratio": 0, "patience": 0}
    return {"evaluation": evaluation, "selection": {**limits, "measure": "judge", **selection}}


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer()
    yield server
    server.close()


def scoring(judge: JudgeServer, *scores: list[float]) -> None:
    """Have a judge give these scores, one list a model, and be down after them."""
    waiting = [score for each in scores for score in each]

    def reply(asked: str) -> str:
        score = waiting.pop(0)
        judge.every = None if waiting else DOWN
        return f"Score: {score:g}"

    judge.every, judge.reply = None, reply


def printed(run: LocalRun) -> str:
    text = io.StringIO()
    print_status(read_status(run.uri), Console(file=text, width=200))
    return text.getvalue()


def test_the_judge_decides_against_the_loss(
    tmp_path: Path, tiny_llama: Path, question_file: Path, judge: JudgeServer
) -> None:
    # the loss falls in both iterations; of the second one the judge thinks less
    scoring(judge, LOW, [6.0] * 8, [5.0, 6.0] * 4)
    tables = judged(judge, on_regression="roll_back")
    spin = {"max_iterations": 2, "ref_policy_kl_penalty": 0.1}
    run = play(settings_of(tmp_path / "run", tiny_llama, question_file, **tables, spin=spin))
    status = read_status(run.uri)
    assert status.state == "done"
    first, second = status.iterations
    assert (first.outcome, first.measure, first.decision) == ("better", "judge", "continue")
    # 6 - 3.5; each answer rose by 3 or 2, and half of the answers by each
    change = first.answer_changes["judge"]
    assert change is not None
    assert (change["mean"], change["num_better"], change["num_answers"], change["against"]) == (2.5, 8, 8, layout.BASE)
    assert 2.0 <= change["low"] < 2.5 < change["high"] <= 3.0
    assert first.reason.startswith("judge score +2.5000 (95 %: +2.")
    assert first.reason.endswith(" against the base model")
    assert (second.outcome, second.decision) == ("regressed", "done")
    assert second.answer_changes["judge"] is not None
    assert second.answer_changes["judge"]["mean"] == -0.5
    assert second.val_loss is not None and first.val_loss is not None and status.base.val_loss is not None
    assert second.val_loss < first.val_loss < status.base.val_loss
    assert status.best is not None
    assert status.best.iteration == 0
    assert len(judge.requests) == 3 * 8
    text = printed(run)
    assert "iteration 0: better, judge score +2.5000" in text
    page = build_page(run)
    assert "Iteration 0 is better than the base model." in page
    assert "judge score decides: a change of +2.500, with a 95 % confidence interval from +2." in page
    assert collect_garbage(run.uri, dry_run=True).files == {}
    play_anywhere(settings_of(tmp_path / "run", tiny_llama, question_file, **tables, spin=spin))
    assert len(judge.requests) == 3 * 8, "a finished run asks nothing again"


def test_a_run_stops_where_the_judge_is_down_and_goes_on_with_the_same_command(
    tmp_path: Path, tiny_llama: Path, question_file: Path, judge: JudgeServer
) -> None:
    settings = settings_of(tmp_path / "run", tiny_llama, question_file, **judged(judge))
    scoring(judge, LOW)
    with pytest.raises(EngineError, match="'judge' decides, and iteration 0 cannot be compared without it"):
        play_anywhere(settings)
    run = LocalRun(tmp_path / "run")
    assert run.exists(layout.evaluation(layout.BASE))
    assert not run.exists(layout.checkpoint(0)), "no verdict is guessed"
    status = read_status(run.uri)
    assert (status.state, status.exit_code) == ("failed", 1)
    assert status.failure is not None
    assert (status.failure["step"], status.failure["iteration"]) == ("evaluate", 0)
    text = printed(run)
    assert "failed in evaluate iteration 0: EngineError" in text
    assert "once that is mended, the same command goes on" in text
    assert "training is complete" not in text
    trained = {path: path.stat().st_mtime_ns for path in run.root.rglob("policy/*.safetensors")}
    assert trained

    scoring(judge, [6.0] * 8)
    play_anywhere(settings)
    status = read_status(run.uri)
    assert (status.state, status.iterations[0].outcome) == ("done", "better")
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("policy/*.safetensors")} == trained


def test_a_judge_that_scores_too_few_answers_decides_nothing(
    tmp_path: Path, tiny_llama: Path, question_file: Path, judge: JudgeServer
) -> None:
    replies = iter(["Score: 5"] * 7 + ["I would rather not."])
    judge.reply = lambda asked: next(replies)
    settings = settings_of(tmp_path / "run", tiny_llama, question_file, **judged(judge))
    with pytest.raises(EngineError, match=r"gave 7 of 8 answers a score from 1 to 10, expected at least 8"):
        play_anywhere(settings)
    assert not LocalRun(tmp_path / "run").exists(layout.evaluation(layout.BASE)), "it is asked again"


def test_warm_up_and_control_are_held_against_the_iteration_by_what_decides(
    tmp_path: Path, tiny_llama: Path, question_file: Path, judge: JudgeServer
) -> None:
    scoring(judge, LOW, [5.0] * 8, [6.0, 7.0] * 4, [8.0, 9.0] * 4)  # base, warm-up, iteration 0, control
    tables = {**judged(judge), "warm_up": {"max_epochs": 1, "lr": 3e-3}, "control": {"sft": True}}
    run = play(settings_of(tmp_path / "run", tiny_llama, question_file, **tables))
    status = read_status(run.uri)
    assert status.state == "done"
    (row,) = status.iterations
    change = row.answer_changes["judge"]
    assert change is not None
    assert (change["against"], change["mean"], row.outcome) == (layout.WARM_UP, 1.5, "better")
    assert status.warm_up is not None
    assert status.warm_up.evaluation is not None
    assert status.warm_up.evaluation["judge"]["mean"] == 5.0
    (control,) = status.control
    assert control.evaluation is not None
    assert control.evaluation["judge"]["mean"] == 8.5
    assert control.changes["judge"]["mean"] == -2.0
    assert control.changes["judge"]["verdict"] == "worse"
    assert "judge score −2.000 (−2.000 to −2.000)" in control.sentence
    page = build_page(run)
    assert "judge score −2.000" in page
    assert '<th scope="col">warm-up</th>' in page
    assert collect_garbage(run.uri, dry_run=True).files == {}


def test_a_control_whose_evaluation_failed_is_reported_at_the_end(
    tmp_path: Path, tiny_llama: Path, question_file: Path, judge: JudgeServer
) -> None:
    scoring(judge, LOW, [6.0] * 8)
    tables = {**judged(judge), "control": {"sft": True}}
    settings = settings_of(tmp_path / "run", tiny_llama, question_file, **tables)
    with pytest.raises(EngineError, match="no GPU left"):
        play_anywhere(settings)
    status = read_status(str(tmp_path / "run"))
    assert (status.state, status.iterations[0].outcome) == ("failed", "better")
    assert "the same command runs the evaluations that are missing" in printed(LocalRun(tmp_path / "run"))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    group = {
        "group": "mine",
        "task": ["my_choice"],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
    }
    surprise = {**CHOICE, "task": "surprise", "output_type": "loglikelihood", "doc_to_target": "{{choices[0]}}"}
    surprise["metric_list"] = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    del surprise["doc_to_choice"]
    files = {"mine.yaml": group, "surprise.yaml": surprise}
    return write_tasks(tmp_path / "tasks", ROWS, [], **files)


def by_task(tasks: Path, measure: str, *names: str, **more: Any) -> dict[str, Any]:
    evaluation = {"tasks": list(names), "task_files": str(tasks)}
    selection = {"max_length_ratio": 0, "patience": 0, "measure": measure, "on_regression": "continue"}
    return {"evaluation": {**evaluation, **more}, "selection": selection}


def test_a_task_decides_paired_by_document(tmp_path: Path, tiny_llama: Path, question_file: Path, tasks: Path) -> None:
    tables = by_task(tasks, "task:my_choice", "my_choice")
    run = play(settings_of(tmp_path / "run", tiny_llama, question_file, **tables))
    (row,) = read_status(run.uri).iterations
    base, first = (read_evaluated(run, number, "task:my_choice") for number in (layout.BASE, 0))
    assert base is not None and first is not None
    assert (base.title, base.num, base.higher_is_better) == ("my_choice acc", 8, True)
    for each in (base, first):
        assert sorted(each.values) == list(range(8))
        assert sum(each.values.values()) / 8 == each.mean
    change = row.answer_changes["task:my_choice"]
    assert change is not None
    assert change["mean"] == pytest.approx(first.mean - base.mean)
    assert change["num_better"] == sum(first.values[n] > base.values[n] for n in range(8))
    assert "is_paired" not in change
    assert row.reason.startswith(f"my_choice acc {first.mean - base.mean:+.4f} (95 %: ")
    assert "my_choice acc decides" in build_page(run)


def test_a_lower_perplexity_is_better_and_a_metric_of_the_whole_task_is_not_paired(
    tmp_path: Path, tiny_llama: Path, question_file: Path, tasks: Path
) -> None:
    tables = by_task(tasks, "task:surprise/perplexity", "surprise")
    run = play(settings_of(tmp_path / "run", tiny_llama, question_file, **tables))
    (row,) = read_status(run.uri).iterations
    base, first = (read_evaluated(run, number, "task:surprise/perplexity") for number in (layout.BASE, 0))
    assert base is not None and first is not None
    assert base.higher_is_better is False
    assert not base.values
    change = row.answer_changes["task:surprise/perplexity"]
    assert change is not None
    assert change["is_paired"] is False
    assert base.stderr is not None and first.stderr is not None
    half = NormalDist().inv_cdf(0.975) * (base.stderr**2 + first.stderr**2) ** 0.5
    rounding = 8 * max(abs(change["high"]), abs(change["mean"]), half) * sys.float_info.epsilon  # of eight operations
    assert change["high"] - change["mean"] == pytest.approx(half, rel=0, abs=rounding)
    assert ", by standard errors, not paired) against the base model" in row.reason
    best = read_status(run.uri).best
    assert best is not None
    if row.outcome != "regressed":
        assert best.iteration == (0 if first.mean < base.mean else layout.BASE)


def test_a_group_decides_by_its_standard_errors(
    tmp_path: Path, tiny_llama: Path, question_file: Path, tasks: Path
) -> None:
    run = play(settings_of(tmp_path / "run", tiny_llama, question_file, **by_task(tasks, "task:mine", "mine")))
    (row,) = read_status(run.uri).iterations
    assert row.answer_changes["task:mine"] is not None
    assert row.answer_changes["task:mine"]["is_paired"] is False
    assert row.reason.startswith("mine acc ")


def test_a_metric_that_the_task_has_not_and_too_few_documents_are_refused(
    tmp_path: Path, tiny_llama: Path, question_file: Path, tasks: Path
) -> None:
    tables = by_task(tasks, "task:my_choice/f2", "my_choice")
    with pytest.raises(ConfigError, match=r"no finite f2 of my_choice, only my_choice/acc; set selection\.measure to"):
        play_anywhere(settings_of(tmp_path / "run", tiny_llama, question_file, **tables))
    few = by_task(tasks, "task:my_choice", "my_choice", limit=5)
    with pytest.raises(ConfigError, match=r"my_choice acc has 5 values, expected at least 8 to compare models by"):
        play_anywhere(settings_of(tmp_path / "run", tiny_llama, question_file, **few))
    right = by_task(tasks, "task:my_choice", "my_choice")
    play_anywhere(settings_of(tmp_path / "run", tiny_llama, question_file, **right))
    assert read_status(str(tmp_path / "run")).state == "done", "the settings may be set right afterwards"


def test_an_evaluation_that_cannot_be_repeated_is_kept_and_the_change_refused(
    tmp_path: Path, tiny_llama: Path, question_file: Path, tasks: Path
) -> None:
    tables = by_task(tasks, "task:my_choice", "my_choice")
    run = play(settings_of(tmp_path / "run", tiny_llama, question_file, **tables))
    before = run.read(layout.evaluation(0))
    run.delete(f"{layout.epoch(0, 0)}/policy")
    limited = by_task(tasks, "task:my_choice", "my_choice", limit=8)
    with pytest.raises(
        ConfigError, match=r"weights are not kept \(.*\); set back what changed: evaluation\.limit was '1\.0', now '8'"
    ):
        play_anywhere(settings_of(tmp_path / "run", tiny_llama, question_file, **limited))
    assert run.read(layout.evaluation(0)) == before


def test_a_judge_that_is_down_stops_no_run_that_a_task_decides(
    tmp_path: Path, tiny_llama: Path, question_file: Path, tasks: Path, judge: JudgeServer
) -> None:
    judge.every = DOWN
    asked = {"judge_url": judge.url, "judge_model": "judge"}
    settings = settings_of(
        tmp_path / "run", tiny_llama, question_file, **by_task(tasks, "task:my_choice", "my_choice", **asked)
    )
    run = play(settings)
    status = read_status(run.uri)
    assert len(status.iterations) == 1
    assert status.state == "interrupted", "the judge's part is missing"
    judge.every = None
    play_anywhere(settings)
    assert read_status(run.uri).state == "done"
    assert read_manifest(run, layout.evaluation(0)).facts["judge"]["mean"] == 5.0


def test_a_tag_is_refused_at_once(tmp_path: Path, tiny_llama: Path, question_file: Path) -> None:
    tagged = {**CHOICE, "tag": "all_mine"}
    tasks = write_tasks(tmp_path / "tasks", ROWS, [], **{"tagged.yaml": {**tagged, "task": "tagged"}})
    settings = settings_of(tmp_path / "run", tiny_llama, question_file, **by_task(tasks, "task:all_mine", "all_mine"))
    with pytest.raises(ConfigError, match="all_mine is a tag, whose tasks have results of their own"):
        begin(settings)


def test_runs_that_were_judged_alike_are_compared_by_the_judge(
    tmp_path: Path, tiny_llama: Path, question_file: Path, judge: JudgeServer
) -> None:
    runs = []
    for name, scores in (("one", [6.0] * 8), ("two", [7.0, 8.0] * 4)):
        scoring(judge, LOW, scores)
        runs.append(play(settings_of(tmp_path / name, tiny_llama, question_file, **judged(judge))))
    comparison = compare_runs([run.uri for run in runs])
    change = comparison.runs[1].answers_from_first["judge"]
    assert change is not None
    assert change.mean == 1.5
    assert "judge score +1.500 (" in comparison.sentences[0]
