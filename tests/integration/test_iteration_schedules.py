"""Whole runs with schedules over iterations, carried optimizer state and other objectives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components.algorithm.loss import STEP_ZERO_TOLERANCE
from spin_components.data.shards import Score, read_rows
from spin_components.errors import InputsChangedError
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.train_epoch.step import train
from support import bounds
from support.playing import begin, hardware, losses, play, play_iteration, play_scores

MakeSettings = Callable[..., Settings]


def rows_of(run: LocalRun, t: int, e: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run.path(layout.epoch(t, e) + "/metrics.json").read_text())["steps"]
    return rows


def state_after(run: LocalRun, t: int, e: int) -> dict[str, Any]:
    state: dict[str, Any] = read_manifest(run, layout.epoch_manifest(t, e)).facts["state"]
    return state


def test_schedules_apply_to_their_iterations_and_can_be_extended(make_settings: MakeSettings) -> None:
    spin: dict[str, Any] = {"history": 0, "max_iterations": 1, "max_epochs": [2, 1]}
    spin |= {"ref_policy_kl_penalty": [0.1, 0.5]}
    short = make_settings(spin=spin, training={"lr": [1e-3, 5e-4]}, generation={"temperature": [1.0, 0.0]})
    run = play(short)
    first = run.read_json(layout.checkpoint(0))["facts"]
    assert (first["decision"], first["epoch"]) == ("done", 1)
    # a second iteration, with other settings for it than when the first one started
    spin |= {"max_iterations": 2, "max_epochs": [2, 1, 3], "ref_policy_kl_penalty": [0.1, 5.0]}
    longer = make_settings(spin=spin, training={"lr": [1e-3, 2e-4]}, generation={"temperature": [1.0, 0.5, 0.0]})
    run = play(longer)
    assert [len(rows_of(run, t, e)) for t, e in ((0, 0), (0, 1), (1, 0))] == [3, 3, 3]
    assert {row["lr"] for row in rows_of(run, 0, 1)} == {1e-3}
    assert {row["lr"] for row in rows_of(run, 1, 0)} == {2e-4}
    assert not run.exists(layout.epoch_manifest(1, 1))
    generated = [read_manifest(run, layout.manifest_of(layout.generations(t, 0))).inputs for t in (0, 1)]
    assert [inputs["generation.temperature"] for inputs in generated] == [1.0, 0.5]
    trained = [read_manifest(run, layout.epoch_manifest(t, 0)).inputs for t in (0, 1)]
    assert [inputs["spin.ref_policy_kl_penalty"] for inputs in trained] == [0.1, 5.0]
    assert [inputs["spin.max_epochs"] for inputs in trained] == [2, 1]
    assert run.read_json(layout.checkpoint(1))["facts"]["ref_policy_kl_penalty"] == 5.0
    # settings of started iterations are fixed
    with pytest.raises(InputsChangedError, match=r"training.lr was \[0.001, 0.0005\], now \[0.001, 0.0003\]"):
        begin(make_settings(spin=spin, training={"lr": [1e-3, 3e-4]}, generation={"temperature": [1.0, 0.5, 0.0]}))


def test_optimizer_state_is_carried_from_one_iteration_to_the_next(make_settings: MakeSettings, tmp_path: Path) -> None:
    training = {"limit_train_batches": 2}
    runs = {}
    for reset in (True, False):
        spin = {"max_iterations": 2, "reset_optimizer": reset}
        runs[reset] = play(make_settings(run={"uri": str(tmp_path / str(reset))}, spin=spin, training=training))
    assert state_after(runs[True], 1, 0)["num_updates"] == 2
    assert state_after(runs[False], 1, 0)["num_updates"] == 4
    fresh, carried = (runs[reset] for reset in (True, False))
    assert rows_of(carried, 0, 0)[-1]["loss"] == rows_of(fresh, 0, 0)[-1]["loss"]
    # the first step of the second iteration sees the same weights and pairs; the second feels the first's update
    first = [rows_of(run, 1, 0)[0]["loss"] for run in (carried, fresh)]
    assert first == pytest.approx([math.log(2)] * 2, abs=STEP_ZERO_TOLERANCE["float32"])
    assert abs(rows_of(carried, 1, 0)[1]["loss"] - rows_of(fresh, 1, 0)[1]["loss"]) > 1e-4
    # state is kept with policies that a next iteration may start from, and only if it is carried
    kept = {path.parent.relative_to(carried.root).as_posix() for path in carried.root.rglob("trainer")}
    assert kept == {layout.epoch(t, 0) for t in (1, carried.read_json(layout.BEST)["iteration"])}
    assert not list(fresh.root.rglob("trainer"))


def test_carried_state_is_used_after_an_extension_and_interruptions(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    training = {"save_interval": 1, "micro_batch_size": 2}
    spin = {"max_iterations": 2, "reset_optimizer": False, "history": 0}
    whole = play(make_settings(run={"uri": str(tmp_path / "whole")}, spin=spin, training=training))
    run = play(make_settings(spin=spin | {"max_iterations": 1}, training=training))
    settings = make_settings(spin=spin, training=training)
    reference = play_iteration(settings, 0, begin(settings))
    scores = play_scores(settings, 1, reference)
    attempt = run.read_json(layout.ATTEMPT)
    interrupted = False
    for done in range(4):  # every attempt ends after one step, inside the epoch
        run.write_json(layout.ATTEMPT, {**attempt, "deadline": None if done == 3 else 0.0})
        interrupted = not train(settings.run.uri, 1, 0, reference, scores, hardware(settings)) or interrupted
    assert interrupted
    play(settings)
    assert losses(run) == losses(whole)
    assert state_after(run, 1, 0)["num_updates"] == 6


def test_the_base_model_scores_every_pair_and_once_where_it_is_the_reference(make_settings: MakeSettings) -> None:
    objective = {"loss": "hinge", "base_weight": 0.25, "sft_weight": 0.1, "length_normalized": True}
    run = play(make_settings(spin={"max_iterations": 2}, objective=objective))
    first, second = (read_rows(run.path(layout.ref_logprobs(t, 0)), Score) for t in (0, 1))
    assert all((score.base_actual, score.base_generated) == (score.ref_actual, score.ref_generated) for score in first)
    # after an iteration, human answers are likelier than under the base model
    assert all(score.base_actual is not None and score.base_actual < score.ref_actual for score in second)
    rows = rows_of(run, 0, 0)
    assert rows[0]["loss"] == pytest.approx(1.0 + 0.1 * rows[0]["sft_loss"], rel=STEP_ZERO_TOLERANCE["float32"])
    assert rows_of(run, 1, 0)[0]["sft_loss"] < rows[0]["sft_loss"]
    inputs = read_manifest(run, layout.epoch_manifest(1, 0)).inputs
    assert {name: inputs[f"objective.{name}"] for name in objective} == objective
    with pytest.raises(InputsChangedError, match=r"objective.loss was 'hinge', now 'logistic'"):
        begin(make_settings(spin={"max_iterations": 2}, objective=objective | {"loss": "logistic"}))


@pytest.mark.usefixtures("warm_python")
def test_two_ranks_take_up_carried_state_and_give_the_losses_of_plain_torch(
    make_settings: MakeSettings, tiny_llama: Path
) -> None:
    objective = {"base_weight": 0.5, "sft_weight": 0.5, "length_normalized": True, "label_smoothing": 0.1}
    settings = make_settings(objective=objective, spin={"max_iterations": 2, "reset_optimizer": False, "history": 0})
    run, uri = LocalRun(Path(settings.run.uri)), settings.run.uri
    reference = play_iteration(settings, 0, begin(settings))
    scores = play_scores(settings, 1, reference)
    train(uri, 1, 0, reference, scores, hardware(settings))
    expected = rows_of(run, 1, 0)
    run.delete(layout.epoch(1, 0))
    train(uri, 1, 0, reference, scores, {"device": "cpu", "ranks": 2, "threads": 1})
    tolerances: tuple[tuple[str, dict[str, Any]], ...] = (
        ("loss", {"abs": bounds.of_small_run(tiny_llama, num_steps=3)}),
        ("sft_loss", {"abs": bounds.of_small_run(tiny_llama, num_steps=3)}),
        ("rewards_actual_mean", {"abs": bounds.of_small_run(tiny_llama, num_steps=3)}),
        ("grad_norm", {"rel": bounds.of_gradient_norm(tiny_llama, num_steps=3)}),
    )
    for name, bound in tolerances:
        assert [row[name] for row in rows_of(run, 1, 0)] == pytest.approx([row[name] for row in expected], **bound)
    assert state_after(run, 1, 0)["num_updates"] == 6


def test_nce_trains_packed_on_pairs_of_two_iterations_and_after_interruptions(make_settings: MakeSettings) -> None:
    training = {"packing": "on", "save_interval": 1}
    settings = make_settings(spin={"max_iterations": 2}, objective={"loss": "nce", "mu": 2.0}, training=training)
    run = play(settings)
    # log(1 + mu) + mu log(1 + 1 / mu), in both iterations: the pairs carried over are scored under the new reference
    first = [rows_of(run, t, 0)[0]["loss"] for t in (0, 1)]
    expected = math.log(3) + 2 * math.log(1.5)
    assert first == pytest.approx([expected] * 2, rel=STEP_ZERO_TOLERANCE["float32"])
    manifest = read_manifest(run, layout.epoch_manifest(1, 0))
    assert manifest.facts["num_history"] > 0
    assert manifest.inputs["objective.mu"] == 2.0
    # the same epoch once more; every attempt ends after one step
    whole, attempt = rows_of(run, 1, 0), run.read_json(layout.ATTEMPT)
    reference = run.read_json(layout.checkpoint(0))["facts"]["checkpoint_uri"]
    scores = play_scores(settings, 1, reference)
    run.delete(layout.epoch(1, 0))
    for done in range(len(whole)):
        run.write_json(layout.ATTEMPT, {**attempt, "deadline": None if done == len(whole) - 1 else 0.0})
        is_last = bool(train(settings.run.uri, 1, 0, reference, scores, hardware(settings)))
        assert is_last == (done == len(whole) - 1)
    assert [row["loss"] for row in rows_of(run, 1, 0)] == [row["loss"] for row in whole]
