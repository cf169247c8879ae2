"""Evaluation of models by tasks and a judge: results, repeated evaluations and failures."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from rich.console import Console

from spin_components.errors import ConfigError, DataError, EngineError
from spin_components.evaluate.step import evaluate
from spin_components.model.folder import load_tokenizer
from spin_components.report.page import build_page
from spin_components.settings.attempt import EvaluationSettings
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest, read_manifest
from spin_components.store.open import open_run
from spin_pipeline.runs.garbage import collect_garbage
from spin_pipeline.runs.status import read_status
from spin_pipeline.watch.tables import print_status
from support.judge_server import Answer, JudgeServer
from support.playing import begin, hardware, play_anywhere
from support.s3_server import BUCKET, S3Server
from support.small import small_settings
from support.task_folder import write_tasks

ROWS = [{"question": f"Question {n}", "choices": ["yes", "no"], "gold": n % 2} for n in range(4)]


def settings_of(root: Path | str, model: Path, data: Path, files: Path | str, /, **evaluation: Any) -> Settings:
    """Settings of one iteration with one evaluation task, and further settings."""
    return small_settings(
        root,
        model,
        data,
        data={"max_train_records": 8, "validation_size": 4},
        generation={"max_new_tokens": 8},
        evaluation={"tasks": ["my_choice"], "task_files": str(files)} | evaluation,
    )


def evaluate_all(settings: Settings, iterations: int = 1) -> None:
    for iteration in range(layout.BASE, iterations):
        evaluate(settings.run.uri, iteration, hardware(settings))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks", ROWS, [])


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture
def trained(tmp_path: Path, tiny_llama: Path, question_file: Path) -> LocalRun:
    """A finished run without evaluation."""
    settings = settings_of(tmp_path / "run", tiny_llama, question_file, "")
    play_anywhere(settings.model_copy(update={"evaluation": EvaluationSettings()}))
    assert read_status(settings.run.uri).state == "done"
    return LocalRun(tmp_path / "run")


def manifest(run: RunStore, iteration: int) -> Manifest:
    return read_manifest(run, layout.evaluation(iteration))


def events(run: RunStore, kind: str) -> list[dict[str, Any]]:
    events = []
    for key in run.list(layout.EVENTS, "*.jsonl"):
        events += [json.loads(line) for line in (run.read(key) or b"").splitlines()]
    return [event for event in events if event["kind"] == kind and event["step"] == "evaluate"]


def test_evaluations_are_in_the_status_the_table_and_the_report(
    tiny_llama: Path, question_file: Path, tmp_path: Path, tasks: Path, judge: JudgeServer
) -> None:
    scores = iter([3, 8, 4, 9])
    judge.reply = lambda asked: f"Score: {next(scores)}"
    settings = settings_of(
        tmp_path / "run",
        tiny_llama,
        question_file,
        tasks,
        judge_url=judge.url,
        judge_model="judge",
        judge_concurrency=1,
        judge_template="{prompt}|{answer}|{human}",
    )
    play_anywhere(settings)
    assert read_status(settings.run.uri).state == "interrupted", "trained, and not evaluated"
    evaluate_all(settings)
    run = LocalRun(tmp_path / "run")
    base, first = manifest(run, layout.BASE), manifest(run, 0)
    for evaluated in (base, first):
        (result,) = evaluated.facts["tasks"]["results"].values()
        assert result["num_documents"] == 4
        assert 0 <= result["metrics"]["acc"]["value"] <= 1
    assert (base.facts["judge"]["mean"], first.facts["judge"]["mean"]) == (5.5, 6.5)
    # the judge scores the sampled answers to the held-out prompts; its requests contain their text
    verdicts = parquet.read_table(run.path(layout.judge_scores(0))).to_pydict()
    samples = parquet.read_table(run.path(layout.validation_samples(0, 0))).to_pydict()
    assert verdicts == {"index": samples["index"], "reply": ["Score: 4", "Score: 9"], "score": [4.0, 9.0]}
    tokenizer = load_tokenizer(tiny_llama, settings.model)
    answers = [tokenizer.decode(ids, skip_special_tokens=True) for ids in samples["generated_ids"]]
    asked = [request["messages"][0]["content"] for request in judge.requests[2:]]
    assert all(f"assistant\n|{answer}|" in text for answer, text in zip(answers, asked, strict=True))
    assert list(first.outputs) == [layout.document_values(0), layout.judge_scores(0)]

    status = read_status(settings.run.uri)
    assert status.state == "done"
    assert status.base.evaluation and status.iterations[0].evaluation
    assert status.iterations[0].evaluation["judge"]["mean"] == 6.5
    text = io.StringIO()
    print_status(status, Console(file=text, width=100))
    (row,) = [line.split() for line in text.getvalue().splitlines() if line.startswith("judge")]
    assert row == ["judge", "5.500", "±", "2.500", "6.500", "±", "2.500"]
    page = build_page(run)
    assert '<h2 id="evaluation-title">Evaluation</h2>' in page
    assert "<td>5.500 ± 2.500</td><td>6.500 ± 2.500</td>" in page
    assert (run.read(layout.REPORT) or b"").decode() == page, "the evaluation has written the report anew"
    assert collect_garbage(settings.run.uri, dry_run=True).files == {}

    before = len(judge.requests)
    evaluate_all(settings)
    assert len(judge.requests) == before
    assert len(events(run, "reuse")) == 2


def test_later_and_changed_evaluations_are_run(
    trained: LocalRun, tiny_llama: Path, question_file: Path, tasks: Path, judge: JudgeServer
) -> None:
    settings = settings_of(trained.root, tiny_llama, question_file, tasks)
    play_anywhere(settings)  # finished: nothing is repeated in a new attempt
    evaluate_all(settings)
    first = manifest(trained, 0)
    assert list(first.inputs) == ["tasks"]
    # a judge is added: the task results are reused
    judged = settings_of(
        trained.root, tiny_llama, question_file, tasks, judge_url=judge.url, judge_model="judge", judge_num_samples=1
    )
    play_anywhere(judged)
    evaluate_all(judged)
    second = manifest(trained, 0)
    assert second.inputs["tasks"] == first.inputs["tasks"]
    assert second.facts["tasks"] == first.facts["tasks"]
    assert (second.facts["judge"]["mean"], len(judge.requests)) == (5.0, 2)
    # other documents in the task files: tasks are repeated, the judge's scores are reused
    data = tasks / "data" / "choice.jsonl"
    data.write_text("".join(data.read_text("utf-8").splitlines(keepends=True)[:3]), encoding="utf-8")
    play_anywhere(judged)
    evaluate_all(judged)
    third = manifest(trained, 0)
    assert third.facts["tasks"]["results"]["my_choice"]["num_documents"] == 3
    assert third.inputs["tasks"] != first.inputs["tasks"]
    assert (third.facts["judge"], len(judge.requests)) == (second.facts["judge"], 2)
    # once more, after the weights were deleted: a warning, not an error
    trained.delete(f"{layout.epoch(0, 0)}/policy")
    limited = settings_of(trained.root, tiny_llama, question_file, tasks, limit=2)
    play_anywhere(limited)
    evaluate_all(limited)
    assert manifest(trained, layout.BASE).facts["tasks"]["results"]["my_choice"]["num_documents"] == 2
    assert manifest(trained, 0).facts["tasks"] == {"skipped": "its weights are not kept (selection.save_top_k)"}
    assert "iteration 0, tasks: skipped, its weights are not kept" in build_page(trained)
    assert read_status(str(trained.root)).state == "done"


def test_an_unreachable_judge_loses_no_results_and_is_used_later(
    trained: LocalRun, tiny_llama: Path, question_file: Path, tasks: Path
) -> None:
    server = JudgeServer(every=Answer(503, b'{"error": {"message": "no GPU left"}}', {"retry-after-ms": "5"}))
    settings = settings_of(trained.root, tiny_llama, question_file, tasks, judge_url=server.url, judge_model="judge")
    play_anywhere(settings)
    for iteration in (layout.BASE, 0):
        with pytest.raises(EngineError, match="no GPU left"):
            evaluate(settings.run.uri, iteration, hardware(settings))
    status = read_status(settings.run.uri)
    assert (status.state, status.exit_code) == ("failed", 1)
    assert status.failure and (status.failure["step"], status.failure["iteration"]) == ("evaluate", 0)
    assert status.best and len(status.iterations) == 1, "training is all there"
    text = io.StringIO()
    print_status(status, Console(file=text, width=200))
    assert "training is complete; the same command runs the evaluations that are missing" in text.getvalue()
    assert "failed in evaluate iteration 0: EngineError" in text.getvalue()
    tasks_done = manifest(trained, 0)
    assert list(tasks_done.inputs) == ["tasks"], "tasks are kept, though the judge was down"
    server.every = None
    play_anywhere(settings)
    evaluate_all(settings)
    server.close()
    assert read_status(settings.run.uri).state == "done"
    assert manifest(trained, 0).facts["judge"]["mean"] == 5.0
    assert manifest(trained, 0).facts["tasks"] == tasks_done.facts["tasks"]


def test_weights_are_deleted_only_after_their_evaluation(
    tiny_llama: Path, question_file: Path, tmp_path: Path, tasks: Path
) -> None:
    settings = settings_of(tmp_path / "run", tiny_llama, question_file, tasks)
    spin = settings.spin.model_copy(update={"max_iterations": 2})
    selection = settings.selection.model_copy(update={"save_top_k": 1, "on_regression": "continue", "patience": 0})
    settings = settings.model_copy(update={"spin": spin, "selection": selection})
    play_anywhere(settings)
    run = LocalRun(tmp_path / "run")
    kept = {t for t in range(2) if run.sizes(f"{layout.epoch(t, 0)}/policy")}
    assert kept == {0, 1}, "nothing was evaluated yet"
    evaluate_all(settings, iterations=2)
    assert all("results" in manifest(run, t).facts["tasks"] for t in (layout.BASE, 0, 1))
    kept = {t for t in range(2) if run.sizes(f"{layout.epoch(t, 0)}/policy")}
    assert kept == {1, run.read_json(layout.BEST)["iteration"]} - {layout.BASE}


def test_prepare_refuses_missing_task_files(tiny_llama: Path, question_file: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "run", tiny_llama, question_file, "/nowhere")
    with pytest.raises(DataError, match=r"task_files = '/nowhere' has no task file"):
        begin(settings)
    assert not LocalRun(tmp_path / "run").exists(layout.RUN)


def test_evaluation_with_a_pipeline_without_the_step_is_refused(
    tiny_llama: Path, question_file: Path, tmp_path: Path, tasks: Path
) -> None:
    from spin_components.prepare.step import prepare

    settings = settings_of(tmp_path / "run", tiny_llama, question_file, tasks)
    compiled = {"max_iterations": 1, "max_epochs": [1], "shards": 1, "nodes": 1, "evaluates": False}
    with pytest.raises(ConfigError, match=r"compiled without the step that evaluates; compile it again"):
        prepare(settings.run.uri, settings.model_dump(mode="json"), compiled)


def test_task_files_and_run_may_lie_in_object_storage(
    tiny_llama: Path, question_file: Path, tasks: Path, s3_server: S3Server, s3: S3Server
) -> None:
    shutil.copytree(tasks, s3_server.folder / BUCKET / "evaluated" / "tasks")
    uri = f"s3://{BUCKET}/evaluated/run"
    settings = settings_of(uri, tiny_llama, question_file, f"s3://{BUCKET}/evaluated/tasks")
    begin(settings)
    evaluate_all(settings, iterations=0)
    run = open_run(uri)
    results = manifest(run, layout.BASE).facts["tasks"]["results"]["my_choice"]
    assert results["num_documents"] == len(ROWS)
    kept = read_manifest(run, layout.inputs_manifest("tasks")).outputs
    assert set(kept) == {
        f"{layout.TASKS}/{name}" for name in ("my_choice.yaml", "data/choice.jsonl", "text.jsonl", "text/my_text.yaml")
    }
