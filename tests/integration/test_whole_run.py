"""Whole runs, step by step in this process: their results, and checks of what is stored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from spin_components.algorithm.loss import STEP_ZERO_TOLERANCE
from spin_components.data.shards import Pair, PairReward, read_rows
from spin_components.errors import (
    ConfigError,
    DataError,
    InputsChangedError,
    IntegrityError,
    NonFiniteError,
    StepZeroError,
)
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.train_epoch.step import train
from support import bounds
from support.playing import begin, hardware, losses, play, play_iteration, play_scores, val_losses

MakeSettings = Callable[..., Settings]
METRICS = {
    "loss",
    "acc",
    "rewards_actual_mean",
    "rewards_generated_mean",
    "rewards_all_mean",
    "rewards_all_std",
    "grad_norm",
    "lr",
    "avg_generated_lengths",
    "consumed_samples",
    "step_time",
    "epoch",
    "iteration",
    "step",
}


def test_two_iterations_of_two_epochs_lower_the_validation_loss_each(
    make_settings: MakeSettings, tiny_llama: Path
) -> None:
    run = play(make_settings(spin={"max_iterations": 2, "max_epochs": 2}))
    base, first, second = val_losses(run)
    assert second < first < base
    steps = [
        json.loads(run.path(layout.epoch(t, e) + "/metrics.json").read_text())["steps"] for t in (0, 1) for e in (0, 1)
    ]
    rows = [row for part in steps for row in part]
    assert [row["step"] for row in rows] == list(range(1, 17))
    # 20 pairs in batches of 8 make 8, 8 and 4, in another order each epoch; iteration 1 has those of iteration 0 too
    consumed = [0, *(row["consumed_samples"] for row in rows)]
    sizes = [after - before for before, after in pairwise(consumed)]
    assert [sorted(sizes[start : start + 3]) for start in (0, 3)] == [[4, 8, 8]] * 2
    assert sizes[6:] == [8] * 10
    assert [(row["iteration"], row["epoch"]) for row in rows] == [
        (t, e) for t in (0, 1) for e in (0, 1) for _ in range(5 if t else 3)
    ]
    assert all(rows[0].keys() >= METRICS for _ in rows)
    kept_to = 8 * bounds.unit_roundoff(torch.float32)  # rewards below 8, in files as float32
    # rewards are kept pair by pair: their means are those of the steps, and each epoch has every pair once
    for part, (t, e) in zip(steps, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        kept = read_rows(run.path(layout.rewards(t, e)), PairReward)
        pairs = [pair for origin in range(t + 1) for pair in read_rows(run.path(layout.generations(origin, 0)), Pair)]
        assert sorted((row.origin, row.index) for row in kept) == sorted(pair.key for pair in pairs)
        for row in part:
            mine = [pair for pair in kept if pair.step == row["step"]]
            assert fmean(p.reward_actual for p in mine) == pytest.approx(row["rewards_actual_mean"], abs=kept_to)
            assert fmean(p.reward_generated for p in mine) == pytest.approx(row["rewards_generated_mean"], abs=kept_to)
    a_reward = bounds.of_small_run(tiny_llama, num_steps=0, num_pairs=1)
    for first_of_iteration in (rows[0], rows[6]):
        assert first_of_iteration["loss"] == pytest.approx(math.log(2), abs=STEP_ZERO_TOLERANCE["float32"])
        assert first_of_iteration["rewards_all_std"] == pytest.approx(0, abs=a_reward)


def test_same_seed_gives_identical_losses_and_weights(make_settings: MakeSettings, tmp_path: Path) -> None:
    first, second = (
        play(make_settings(run={"uri": str(tmp_path / name), "seed": 3}, spin={"max_iterations": 2})) for name in "ab"
    )
    assert losses(first) == losses(second)
    digests = [
        read_manifest(run, layout.checkpoint(1)).outputs["iterations/1/epochs/0/policy/model.safetensors"]
        for run in (first, second)
    ]
    assert digests[0] == digests[1]
    other = play(make_settings(run={"uri": str(tmp_path / "c"), "seed": 4}, spin={"max_iterations": 2}))
    assert losses(first) != losses(other)


def test_the_published_policy_is_a_plain_model_folder(make_settings: MakeSettings, tiny_llama: Path) -> None:
    run = play(make_settings())
    pointer = run.read_json(layout.BEST)
    folder = Path(pointer["uri"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    trained = load_file(folder / "model.safetensors")
    before = load_file(tiny_llama / "model.safetensors")
    assert trained.keys() == before.keys()
    assert any((trained[name] != before[name]).any() for name in trained)
    assert (model.model.embed_tokens.weight == trained["model.embed_tokens.weight"]).all()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (tiny_llama / name).read_bytes()


def test_repeating_a_finished_run_does_nothing(make_settings: MakeSettings) -> None:
    settings = make_settings(spin={"max_iterations": 2})
    run = play(settings)
    files = {path: path.stat().st_mtime_ns for path in run.root.rglob("*") if path.is_file()}
    play(settings)
    changed = {path.name for path, written in files.items() if path.stat().st_mtime_ns != written}
    assert changed <= {"attempt.json", "best.json", "latest.json", "lease.json"}


def test_max_iterations_can_be_raised_after_a_run_has_ended(make_settings: MakeSettings, tmp_path: Path) -> None:
    whole = play(make_settings(run={"uri": str(tmp_path / "whole")}, spin={"max_iterations": 2}))
    short = make_settings(spin={"max_iterations": 1})
    assert play(short).read_json(layout.checkpoint(0))["facts"]["decision"] == "done"
    run = play(make_settings(spin={"max_iterations": 2}))
    assert run.read_json(layout.checkpoint(0))["facts"]["decision"] == "continue"
    assert losses(run) == losses(whole)


def test_changed_settings_are_refused_and_named(make_settings: MakeSettings) -> None:
    begin(make_settings())
    with pytest.raises(
        InputsChangedError, match=r"generation.temperature was 1.0, now 0.5; training.lr was 0.001, now"
    ):
        begin(make_settings(generation={"temperature": 0.5}, training={"lr": 2e-3}))


def test_changed_data_is_refused(make_settings: MakeSettings, tmp_path: Path, question_file: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_bytes(question_file.read_bytes())
    begin(make_settings(data={"train": str(data)}))
    data.write_bytes(question_file.read_bytes() + b'{"prompt": "Why?", "response": "Because."}\n')
    with pytest.raises(InputsChangedError, match=r"data.train \(content\)"):
        begin(make_settings(data={"train": str(data)}))


@pytest.mark.parametrize("key", ["iterations/0/generations/00000.parquet", "iterations/0/ref_logprobs/00000.parquet"])
def test_an_altered_object_is_detected_before_it_is_used(make_settings: MakeSettings, key: str) -> None:
    settings = make_settings()
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    path = LocalRun(Path(settings.run.uri)).path(key)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=key):
        train(settings.run.uri, 0, 0, reference, scores, hardware(settings))


def test_an_altered_reference_is_detected_before_it_is_used(make_settings: MakeSettings) -> None:
    settings = make_settings(spin={"max_iterations": 2})
    reference = play_iteration(settings, 0, begin(settings))
    weights = Path(reference, "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"model.safetensors has"):
        play_iteration(settings, 1, reference)


def test_wrong_reference_weights_stop_the_run_at_step_zero(make_settings: MakeSettings, tmp_path: Path) -> None:
    # score with one model and train another, as with a stale reference or a wrong folder
    settings = make_settings(spin={"max_iterations": 2})
    base = begin(settings)
    play_iteration(settings, 0, base)
    trained = LocalRun(Path(settings.run.uri)).uri_of(layout.epoch(0, 0) + "/policy")
    scores = play_scores(settings, 1, base)
    with pytest.raises(StepZeroError, match="iteration 1, epoch 0, step 0: the first loss"):
        train(settings.run.uri, 1, 0, trained, scores, hardware(settings))


def test_a_learning_rate_that_destroys_the_model_stops_before_the_next_update(make_settings: MakeSettings) -> None:
    settings = make_settings(training={"lr": 1e30, "gradient_clip_val": 0.0})
    reference = begin(settings)
    scores = play_scores(settings, 0, reference)
    with pytest.raises(NonFiniteError, match=r"iteration 0, epoch 0, step \d: .* Nothing was updated"):
        train(settings.run.uri, 0, 0, reference, scores, hardware(settings))


def test_max_steps_ends_the_run(make_settings: MakeSettings) -> None:
    run = play(make_settings(spin={"max_iterations": 3, "max_epochs": 2, "max_steps": 4}))
    assert len(losses(run)) == 4
    assert run.read_json(layout.checkpoint(0))["facts"]["decision"] == "done"
    assert not run.exists(layout.checkpoint(1))


def test_batches_can_be_limited_by_count_and_by_share(make_settings: MakeSettings, tmp_path: Path) -> None:
    by_count = play(make_settings(run={"uri": str(tmp_path / "a")}, training={"limit_train_batches": 1}))
    by_share = play(make_settings(run={"uri": str(tmp_path / "b")}, training={"limit_train_batches": 0.7}))
    assert (len(losses(by_count)), len(losses(by_share))) == (1, 2)  # of 3


def test_validation_inside_an_epoch_runs_at_its_interval(make_settings: MakeSettings) -> None:
    run = play(make_settings(validation={"val_check_interval": 1}))
    rows = json.loads(run.path("iterations/0/epochs/0/metrics.json").read_text())["steps"]
    assert ["val_loss" in row for row in rows] == [
        True,
        True,
        False,
    ]  # the end of the epoch is validated by a separate step
    assert rows[1]["val_loss"] < rows[0]["val_loss"]


def test_shards_make_up_the_same_iteration(make_settings: MakeSettings) -> None:
    run = play(make_settings(generation={"shards": 3}))
    facts = run.read_json(layout.checkpoint(0))["facts"]
    assert facts["num_pairs"] == 20
    assert [part["num_pairs"] for part in facts["generation"]] == [7, 7, 6]


def test_weights_beyond_save_top_k_are_deleted_except_the_last_and_the_best(make_settings: MakeSettings) -> None:
    run = play(make_settings(spin={"max_iterations": 3, "max_epochs": 2}, selection={"save_top_k": 1}))
    kept = {t for t in range(3) if run.sizes(layout.epoch(t, 1) + "/policy")}
    best = run.read_json(layout.BEST)["iteration"]
    assert kept == {best, 2}
    assert not list(run.root.rglob("trainer"))
    assert not run.exists(layout.epoch(2, 0) + "/policy")


def test_patience_stops_a_run_that_does_not_improve(make_settings: MakeSettings) -> None:
    settings = make_settings(
        spin={"max_iterations": 3}, training={"lr": 1e-12}, selection={"patience": 1, "min_delta": 0.01}
    )
    run = play(settings)
    assert run.read_json(layout.checkpoint(0))["facts"]["decision"] == "saturated"
    assert not run.exists(layout.checkpoint(1))


def test_pairs_without_signal_are_dropped_and_counted(make_settings: MakeSettings, tmp_path: Path) -> None:
    # the first token of some answers is EOS: the generated answer is empty
    settings = make_settings(generation={"max_new_tokens": 1, "temperature": 0.0})
    reference = begin(settings)
    play_scores(settings, 0, reference)
    run = LocalRun(Path(settings.run.uri))
    generated = read_manifest(run, "iterations/0/generations/00000.json").facts
    scored = read_manifest(run, "iterations/0/ref_logprobs/00000.json").facts
    assert scored["num_dropped"] == generated["num_empty"] + generated["num_identical"]
    assert scored["num_pairs"] + scored["num_dropped"] == 20


def test_a_pipeline_of_another_shape_is_refused(make_settings: MakeSettings) -> None:
    from spin_components.prepare.step import prepare

    settings = make_settings(spin={"max_iterations": 2, "max_epochs": 2})
    with pytest.raises(ConfigError, match=r"spin.max_epochs = 2, but this pipeline was compiled for \[1, 1\], one"):
        prepare(
            settings.run.uri,
            settings.model_dump(mode="json"),
            {"max_iterations": 2, "max_epochs": [1, 1], "shards": 1, "nodes": 1},
        )


def test_an_unrenderable_record_is_named(make_settings: MakeSettings, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    good = {"prompt": "Why?", "response": "Because."}
    bad = {"messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}]}
    data.write_text(
        f"{json.dumps(good)}\n{json.dumps(bad)}\n{json.dumps(good)}\n{json.dumps(good)}\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match=r"bad.jsonl, line 2"):
        begin(make_settings(data={"train": str(data)}))
    skipping = make_settings(data={"train": str(data), "on_bad_record": "skip", "validation_size": 1})
    begin(skipping)
    assert read_manifest(LocalRun(Path(skipping.run.uri)), layout.DATA_MANIFEST).facts["num_bad_records"] == 1
