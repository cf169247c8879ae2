"""Runs of T-SPIN: iteration 0's answers are the third ones of later iterations' pairs."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spin_components.algorithm.loss import STEP_ZERO_TOLERANCE
from spin_components.data.shards import Pair, PairReward, Score, read_rows, write_rows
from spin_components.errors import InputsChangedError, StepZeroError
from spin_components.memory import processes
from spin_components.record.events import EventLog
from spin_components.ref_logprob.step import score_shard
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest, read_manifest
from spin_components.train_epoch.step import train
from spin_pipeline.cli import main
from spin_pipeline.runs.status import read_status
from support import bounds
from support.playing import begin, hardware, losses, play, play_iteration, play_scores
from support.small import small_settings

MakeSettings = Callable[..., Settings]
BETA = 0.3
TRIPLET: dict[str, dict[str, Any]] = {
    "objective": {"loss": "triplet", "history_weight": BETA},
    "spin": {"max_iterations": 3, "history": 0},
    "selection": {"patience": 0, "on_regression": "continue", "save_top_k": -1},
    "training": {"save_interval": 1, "optimizer": "rmsprop"},
}


def rows_of(run: LocalRun, t: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run.path(layout.epoch(t, 0) + "/metrics.json").read_text())["steps"]
    return rows


def scores_of(run: LocalRun, t: int) -> list[Score]:
    return read_rows(run.path(layout.ref_logprobs(t, 0)), Score)


def reference_of(run: LocalRun, t: int) -> str:
    """The policy that iteration t started from, t >= 1."""
    return run.uri_of(f"{layout.epoch(t - 1, 0)}/policy")


def manifest_of_scores(run: LocalRun, t: int) -> Manifest:
    return read_manifest(run, layout.manifest_of(layout.ref_logprobs(t, 0)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, question_file: Path) -> LocalRun:
    """A whole run of three iterations; not to be written to."""
    folder = tmp_path_factory.mktemp("triplets") / "run"
    return play(small_settings(folder, tiny_llama, question_file, **TRIPLET))


@pytest.fixture
def copied(finished: LocalRun, make_settings: MakeSettings) -> tuple[Settings, LocalRun]:
    """A copy of the run, up to the scores of iteration 1."""
    settings = make_settings(**TRIPLET)
    shutil.copytree(finished.root, settings.run.uri)
    run = LocalRun(Path(settings.run.uri))
    for key in (f"{layout.iteration(1)}/epochs", layout.checkpoint(1), layout.iteration(2)):
        run.delete(key)
    return settings, run


def train_1(settings: Settings, run: LocalRun, **machine: Any) -> str:
    """Train the epoch of iteration 1."""
    scores = [run.uri_of(layout.ref_logprobs(1, 0))]
    return train(settings.run.uri, 1, 0, reference_of(run, 1), scores, {**hardware(settings), **machine})


def score_1(settings: Settings, run: LocalRun) -> str:
    """Score the pairs of iteration 1."""
    generations = run.uri_of(layout.generations(1, 0))
    return score_shard(settings.run.uri, 1, 0, reference_of(run, 1), generations, hardware(settings))


def logistic(value: float) -> float:
    """l(z) = log(1 + e^-z)."""
    return max(-value, 0.0) + math.log1p(math.exp(-abs(value)))


def expected_first_loss(run: LocalRun, t: int, beta: float) -> float:
    """The loss of an iteration's first step, by equation 7 of arXiv:2601.08198 from the reference's scores."""
    rewards = read_rows(run.path(layout.rewards(t, 0)), PairReward)
    batch = [(row.origin, row.index) for row in rewards if row.step == rewards[0].step]
    scores = {score.key: score for score in scores_of(run, t)}
    total = 0.0
    for key in batch:
        score = scores[key]
        total += logistic(score.ref_actual - score.ref_generated)
        if score.ref_proto is not None and not math.isnan(score.ref_proto):
            total += beta * logistic(score.ref_generated - score.ref_proto)
    return total / len(batch)


def is_step_zero_of(run: LocalRun, t: int, beta: float) -> bool:
    expected = expected_first_loss(run, t, beta)
    return bool(rows_of(run, t)[0]["loss"] == pytest.approx(expected, rel=STEP_ZERO_TOLERANCE["float32"]))


@pytest.mark.parametrize("export", ["adapter", "merged"])
def test_an_adapter_is_trained_on_triplets(export: str, make_settings: MakeSettings) -> None:
    sections = {**TRIPLET, "spin": {**TRIPLET["spin"], "max_iterations": 2}, "lora": {"r": 2, "export": export}}
    run = play(make_settings(**sections))
    assert is_step_zero_of(run, 0, beta=0.0)
    assert is_step_zero_of(run, 1, beta=BETA)
    assert not all(math.isnan(score.ref_proto or math.nan) for score in scores_of(run, 1))


def test_every_iteration_begins_at_the_loss_of_its_reference(finished: LocalRun) -> None:
    assert is_step_zero_of(finished, 0, beta=0.0)
    assert is_step_zero_of(finished, 1, beta=BETA)
    assert is_step_zero_of(finished, 2, beta=BETA)
    assert expected_first_loss(finished, 1, beta=BETA) != expected_first_loss(finished, 1, beta=0.0)


def test_iteration_0_has_two_answers_and_later_ones_those_of_iteration_0_besides(finished: LocalRun) -> None:
    assert {score.ref_proto for score in scores_of(finished, 0)} == {None}
    assert "historical_acc" not in rows_of(finished, 0)[0]
    origins = {f"generations of iteration {t}" for t in (0, 2)}
    assert origins == {name for name in manifest_of_scores(finished, 2).inputs if name.startswith("generations of")}
    for t in (1, 2):
        num_protos = sum(not math.isnan(score.ref_proto or 0.0) for score in scores_of(finished, t))
        assert num_protos == manifest_of_scores(finished, t).facts["num_triplets"] > 0
        row = rows_of(finished, t)[0]
        # policy and reference are one model: no reward against it, but advantages
        assert (row["rewards_actual_mean"], row["rewards_generated_mean"]) == (0.0, 0.0)
        assert row["historical_advantage_mean"] != 0.0
        assert 0.0 <= row["historical_acc"] <= 1.0
    trained = read_manifest(finished, layout.epoch_manifest(1, 0)).inputs
    names = ("objective.loss", "objective.alpha", "objective.history_weight")
    assert [trained[name] for name in names] == ["triplet", 1.0, BETA]
    assert "objective.mu" not in trained


def test_training_raises_the_current_advantage(finished: LocalRun) -> None:
    for t in range(3):
        rows = rows_of(finished, t)
        assert rows[-1]["rewards_actual_mean"] > rows[-1]["rewards_generated_mean"]


def test_the_commands_show_the_run_and_reproduce_it(finished: LocalRun, tmp_path: Path) -> None:
    status = read_status(finished.uri)
    triplets = [manifest_of_scores(finished, t).facts["num_triplets"] for t in range(3)]
    assert [row.num_triplets for row in status.iterations] == triplets
    assert triplets[0] is None
    assert status.best is not None
    assert main(["report", finished.uri, "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "historical_advantage_mean" in page
    assert f"{triplets[1]} have a third answer, of iteration 0" in page
    assert main(["reproduce", finished.uri, "--into", str(tmp_path / "again")]) == 0
    assert losses(LocalRun(tmp_path / "again")) == losses(finished)


def _train_1_and_die(settings: Settings) -> None:
    """Train the epoch of iteration 1 in this process, which kills itself after its first save."""
    write = EventLog.write

    def write_and_die(log: EventLog, kind: str, **fields: Any) -> None:
        write(log, kind, **fields)
        if kind == "save":
            os.kill(os.getpid(), signal.SIGKILL)

    EventLog.write = write_and_die  # type: ignore[method-assign, assignment]
    train_1(settings, LocalRun(Path(settings.run.uri)))


def test_an_epoch_killed_inside_iteration_1_is_resumed_to_the_same_bits(
    finished: LocalRun, copied: tuple[Settings, LocalRun]
) -> None:
    settings, run = copied
    process = multiprocessing.get_context("spawn").Process(target=_train_1_and_die, args=(settings,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert run.exists(layout.partial(1, 0)), "it was to be killed inside the epoch"
    train_1(settings, run)
    for key in (layout.rewards(1, 0), f"{layout.epoch(1, 0)}/policy/model.safetensors"):
        assert run.read(key) == finished.read(key)
    found, expected = (
        [{name: value for name, value in row.items() if name != "step_time"} for row in rows_of(each, 1)]
        for each in (run, finished)
    )
    assert found == expected


@pytest.mark.usefixtures("warm_python")
def test_two_ranks_give_the_losses_of_one(
    finished: LocalRun, copied: tuple[Settings, LocalRun], tiny_llama: Path
) -> None:
    settings, run = copied
    train_1(settings, run, ranks=2, threads=1)
    expected, model = rows_of(finished, 1), bounds.model_in(tiny_llama)
    # alpha = 1 and BETA in the place of beta
    bound = bounds.of_losses(model, beta=1.0 + BETA, num_tokens=160, num_pairs=4, num_steps=len(expected))
    for name in ("loss", "current_advantage_mean", "historical_advantage_mean"):
        assert [row[name] for row in rows_of(run, 1)] == pytest.approx([row[name] for row in expected], abs=bound)
    accuracies = ("historical_acc", "current_acc")
    assert [rows_of(run, 1)[0][name] for name in accuracies] == [expected[0][name] for name in accuracies]


@pytest.mark.usefixtures("warm_python")
def test_two_processes_give_the_scores_of_one(
    finished: LocalRun, make_settings: MakeSettings, copied: tuple[Settings, LocalRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = copied
    monkeypatch.setattr(processes, "START_S", 0.0)
    run.delete(layout.manifest_of(layout.ref_logprobs(1, 0)))
    score_1(make_settings(**TRIPLET, hardware={"device": "cpu", "ranks": 2, "threads": 1}), run)
    found, expected = (
        [replace(score, ref_proto=str(score.ref_proto)) for score in scores_of(each, 1)]  # type: ignore[arg-type]
        for each in (run, finished)
    )
    assert found == expected


def test_a_pair_whose_third_answer_is_dropped_is_trained_on_without(copied: tuple[Settings, LocalRun]) -> None:
    settings, run = copied
    key, facts = layout.generations(0, 0), manifest_of_scores(run, 1).facts
    pairs = read_rows(run.path(key), Pair)
    index = next(score.index for score in scores_of(run, 1) if not math.isnan(score.ref_proto or 0.0))
    # iteration 0 would have answered as the human did
    pairs = [replace(pair, generated_ids=pair.actual_ids) if pair.index == index else pair for pair in pairs]
    with run.staged(key) as staged:
        write_rows(staged.path, Pair, pairs)
    manifest = read_manifest(run, layout.manifest_of(key)).model_copy(update={"outputs": staged.outputs})
    run.write_json(layout.manifest_of(key), manifest.model_dump(mode="json"))
    with pytest.raises(InputsChangedError, match="generations of iteration 0 was "):
        score_1(settings, run)
    run.delete(layout.manifest_of(layout.ref_logprobs(1, 0)))
    score_1(settings, run)
    (score,) = [score for score in scores_of(run, 1) if score.index == index]
    assert math.isnan(score.ref_proto or 0.0)
    after = manifest_of_scores(run, 1).facts
    assert (after["num_pairs"], after["num_triplets"]) == (facts["num_pairs"], facts["num_triplets"] - 1)
    train_1(settings, run)
    assert is_step_zero_of(run, 1, beta=BETA)


def test_scores_of_third_answers_by_another_model_stop_the_run_at_step_zero(copied: tuple[Settings, LocalRun]) -> None:
    settings, run = copied
    key, first = layout.ref_logprobs(1, 0), {score.index: score for score in scores_of(run, 0)}
    # planted mistake: those that iteration 0's reference gave
    rows = [
        replace(score, ref_proto=first[score.index].ref_generated) if score.index in first else score
        for score in scores_of(run, 1)
    ]
    with run.staged(key) as staged:
        write_rows(staged.path, Score, rows)
    manifest = manifest_of_scores(run, 1).model_copy(update={"outputs": staged.outputs})
    run.write_json(layout.manifest_of(key), manifest.model_dump(mode="json"))
    with pytest.raises(StepZeroError, match="iteration 1, epoch 0, step 0: the first loss"):
        train_1(settings, run)


def test_pairs_of_iteration_0_that_are_trained_on_again_have_no_third_answer(make_settings: MakeSettings) -> None:
    settings = make_settings(**TRIPLET | {"spin": {"max_iterations": 2}, "training": {"packing": "off"}})
    run = play(settings)
    by_origin = {
        origin: {math.isnan(score.ref_proto or 0.0) for score in scores_of(run, 1) if score.origin == origin}
        for origin in (0, 1)
    }
    assert by_origin == {0: {True}, 1: {False}}
    assert is_step_zero_of(run, 1, beta=BETA)


def test_after_going_back_to_the_first_reference_pairs_have_two_answers(make_settings: MakeSettings) -> None:
    settings = make_settings(**TRIPLET)
    first = begin(settings)
    play_iteration(settings, 0, first)
    scores, run = play_scores(settings, 1, first), LocalRun(Path(settings.run.uri))
    assert manifest_of_scores(run, 1).facts["num_triplets"] is None
    train(settings.run.uri, 1, 0, first, scores, hardware(settings))
    assert is_step_zero_of(run, 1, beta=0.0)
    assert "historical_acc" not in rows_of(run, 1)[0]
