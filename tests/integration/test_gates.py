"""Gates between iterations: after a destructive one, the run ends or continues with the best model before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from spin_components.algorithm.answer_stats import distinct, length_ratio, repetition_rate
from spin_components.data.shards import GREEDY, AnswerLoss, AnswerMeasures, Prompt, Sample, read_rows
from spin_components.model.stored import model_digest
from spin_components.record.events import read_events
from spin_components.record.history import read_history
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_pipeline.runs.compare import compare_runs, comparison_page
from spin_pipeline.runs.export import export_model
from spin_pipeline.runs.published import find_published, forked_values
from spin_pipeline.runs.status import read_status
from spin_pipeline.watch.tables import print_status
from support import bounds
from support.bounds import unit_roundoff
from support.playing import begin, play, play_iteration, play_scores, val_losses

MakeSettings = Callable[..., Settings]
DESTRUCTIVE = {
    "spin": {"max_iterations": 3},
    "data": {"max_train_records": 8},
    "generation": {"max_new_tokens": 6},
    "training": {"lr": [1e-3, 10.0, 1e-3]},
}
"""Iteration 1 takes a step that no model survives."""


def facts_of(run: LocalRun, iteration: int) -> dict[str, object]:
    return dict(read_manifest(run, layout.checkpoint(iteration)).facts)


def references(run: LocalRun) -> list[str]:
    """Digest of the reference, by iteration."""
    keys = sorted(run.list("iterations", "*/generations/00000.json"))
    return [read_manifest(run, key).inputs["reference"] for key in keys]


def test_a_destructive_iteration_ends_the_run_with_the_best_before_it(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = make_settings(**DESTRUCTIVE)
    run = play(settings)
    base, first, second = val_losses(run)
    assert first < base < second
    facts = facts_of(run, 1)
    assert (facts["outcome"], facts["decision"], facts["best"], facts["next"]) == ("regressed", "regressed", 0, None)
    for name, against, loss in (("from_base", -1, base), ("from_reference", 0, first), ("from_best", 0, first)):
        change = facts[name]
        assert isinstance(change, dict)
        assert change["against"] == against
        # the same losses, added in another order: 8 answers by 3 models
        assert change["mean"] == pytest.approx(second - loss, abs=bounds.of_sum([second] * 24, torch.float64))
        assert 0 < change["low"] < change["mean"] < change["high"]
    assert not run.exists(layout.generations(2, 0)), "a regressed policy does not become the reference"
    best = run.read_json(layout.BEST)
    assert (best["iteration"], best["val_loss"]) == (0, first)
    assert run.read_json(layout.LATEST)["iteration"] == 1
    assert [e["message"] for e in read_events(run) if e["kind"] == "warning" and "iteration 1: worse" in e["message"]]

    status = read_status(run.uri)
    assert (status.state, status.iterations[1].outcome) == ("done", "regressed")
    print_status(status, Console(width=200))
    printed = capsys.readouterr().out
    assert "iteration 1: worse, val_loss +" in printed
    assert f"best: iteration 0, {best['uri']}" in printed
    assert export_model(run.uri, "best", str(tmp_path / "model"))[0].iteration == 0

    # the rules belong to the attempt: the same run can be continued with other rules
    rolled = play(make_settings(**DESTRUCTIVE, selection={"on_regression": "roll_back", "save_top_k": 1}))
    facts = facts_of(rolled, 1)
    assert (facts["outcome"], facts["decision"], facts["next"]) == ("regressed", "roll_back", 0)
    played_0, played_1, played_2 = references(rolled)
    assert played_1 == played_2 == model_digest(rolled, best["uri"]) != played_0
    pairs = [rolled.path(layout.generations(t, 0)).read_bytes() for t in (1, 2)]
    assert pairs[0] != pairs[1], "the same policy samples afresh"
    after = facts_of(rolled, 2)
    assert (after["reference_uri"], after["decision"]) == (best["uri"], "done")
    assert after["outcome"] in ("better", "unclear")
    assert not rolled.sizes(layout.epoch(1, 0) + "/policy"), "what regressed goes first"
    assert read_history(rolled).best == rolled.read_json(layout.BEST)["iteration"] == after["best"]
    assert read_status(rolled.uri).iterations[1].decision == "roll_back"


def test_the_base_model_is_the_best_if_no_iteration_is_better(
    make_settings: MakeSettings, finished: LocalRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 1e30 gives finite weights and a loss that is not finite
    settings = make_settings(
        spin={"max_iterations": 2},
        data={"max_train_records": 8},
        generation={"max_new_tokens": 6},
        training={"lr": 1e30, "gradient_clip_val": 0.0},
        validation={"num_samples": 3},
    )
    run = play(settings)
    facts = facts_of(run, 0)
    assert (facts["val_loss"], facts["reason"]) == (None, "val_loss is not finite")
    assert (facts["decision"], facts["best"]) == ("regressed", layout.BASE)
    assert not run.exists(layout.generations(1, 0))
    record = run.read_json(layout.RUN)
    assert run.read_json(layout.BEST) == {
        "iteration": -1,
        "uri": record["base_model"]["uri"],
        "val_loss": read_manifest(run, layout.BASE_VALIDATION).facts["val_loss"],
    }
    assert not [event for event in read_events(run) if "report could not" in str(event.get("message"))]
    page = run.path(layout.REPORT).read_text("utf-8")
    assert "No iteration is better than the base model." in page
    assert "Iteration 0 is worse: val_loss is not finite." in page

    print_status(read_status(run.uri), Console(width=200))
    assert f"best: the base model, {record['base_model']['uri']}" in capsys.readouterr().out
    published, _ = export_model(run.uri, "best", str(tmp_path / "model"))
    assert (published.iteration, published.name) == (-1, "the base model")
    weights = Path(record["base_model"]["uri"], "model.safetensors").read_bytes()
    assert (tmp_path / "model/model.safetensors").read_bytes() == weights
    card = (tmp_path / "model/README.md").read_text("utf-8")
    assert "no iteration was better" in card
    assert "| iteration 0 | not finite |" in card
    forked = forked_values(run, "best")["model"]
    assert (forked["base"], forked["sha256"]) == (published.uri, find_published(run, "best").sha256)
    assert forked["forked_from"] == f"{run.uri}, the base model"
    comparison = compare_runs([run.uri, finished.uri])
    mine = comparison.runs[0]
    assert (mine.best, mine.best_name, mine.best_loss) == (layout.BASE, "base of 1", mine.base_loss)
    assert (mine.losses, mine.from_base, mine.acc) == ({}, None, None)
    assert "base of 1" in comparison_page(comparison)


def test_held_out_answers_are_sampled_scored_and_reported(make_settings: MakeSettings) -> None:
    settings = make_settings(validation={"num_samples": 5}, generation={"max_new_tokens": 8})
    run = play(settings)
    prompts = read_rows(run.path(layout.VALIDATION), Prompt)[:5]
    sampled = [read_rows(run.path(layout.validation_samples(t, 0)), Sample) for t in (layout.BASE, 0)]
    for samples, t in zip(sampled, (layout.BASE, 0), strict=True):
        assert [sample.index for sample in samples] == [prompt.index for prompt in prompts]
        facts = read_manifest(run, layout.validation(t, 0)).facts
        answers = [sample.generated_ids for sample in samples]
        assert facts["num_samples"] == 5
        assert facts["repetition_rate"] == round(repetition_rate(answers), 4)
        assert facts["distinct_2"] == round(distinct(answers, 2), 4)
        assert facts["length_ratio"] == round(length_ratio(answers, [prompt.actual_ids for prompt in prompts]), 4)
        assert facts["cut_share"] == sum(len(ids) == 8 for ids in answers) / 5
        rows = read_rows(run.path(layout.measures_of(layout.validation(t, 0))), AnswerMeasures)
        assert [row.generated_ids for row in rows[:5]] == answers
        assert [(row.decoding, row.index) for row in rows[5:]] == [(GREEDY, prompt.index) for prompt in prompts]
        assert facts["greedy_chrf"] == round(sum(row.chrf for row in rows[5:]) / 5, 4)
        assert facts["ended_share"] == round(1 - facts["cut_share"], 4)
    # the margin, computed from the stored losses and samples of base model and policy
    before, after = (
        {loss.index: loss.nll for loss in read_rows(run.path(layout.validation_losses(t, 0)), AnswerLoss)}
        for t in (layout.BASE, 0)
    )
    margins = [
        0.1 * ((before[base.index] - after[base.index]) - (policy.logprob_of_reference_sample - base.logprob))
        for base, policy in zip(*sampled, strict=True)
    ]
    facts = read_manifest(run, layout.validation(0, 0)).facts
    # sums below 128 nats, of which files hold float32
    assert facts["spin_margin"] == pytest.approx(sum(margins) / 5, abs=0.1 * 4 * 128 * unit_roundoff(torch.float32))
    assert facts["spin_acc"] == sum(margin > 0 for margin in margins) / 5
    assert facts["spin_margin"] > 0.1
    assert "spin_margin" not in read_manifest(run, layout.BASE_VALIDATION).facts
    assert facts_of(run, 0)["spin_margin"] == facts["spin_margin"]
    page = run.path(layout.REPORT).read_text("utf-8")
    assert "Sampled answers to 5 held-out prompts" in page


def test_a_policy_like_its_reference_has_no_margin_and_answers_alike(
    make_settings: MakeSettings, tiny_llama: Path
) -> None:
    settings = make_settings(training={"lr": 1e-12}, validation={"num_samples": 5}, generation={"max_new_tokens": 8})
    run = play(settings)
    base, policy = (read_rows(run.path(layout.validation_samples(t, 0)), Sample) for t in (layout.BASE, 0))
    assert [sample.generated_ids for sample in base] == [sample.generated_ids for sample in policy]
    assert [sample.logprob for sample in base] == pytest.approx(
        [s.logprob_of_reference_sample for s in policy],
        abs=bounds.of_logprob(bounds.model_in(tiny_llama), num_tokens=8),
    )
    assert read_manifest(run, layout.validation(0, 0)).facts["spin_margin"] == pytest.approx(
        0, abs=bounds.of_small_run(tiny_llama, num_steps=0)
    )


def test_a_limit_on_answer_statistics_needs_samples_and_is_applied(make_settings: MakeSettings) -> None:
    settings = make_settings(
        spin={"max_iterations": 2},
        validation={"num_samples": 4},
        generation={"max_new_tokens": 8},
        selection={"max_length_ratio": 1.0001, "on_regression": "continue"},
    )
    reference = play_iteration(settings, 0, begin(settings))
    run = LocalRun(Path(settings.run.uri))
    facts = facts_of(run, 0)
    assert str(facts["reason"]).startswith("length_ratio ")
    assert (facts["outcome"], facts["decision"], facts["next"]) == ("drifted", "continue", 0)
    assert reference == facts["checkpoint_uri"]
    assert run.read_json(layout.BEST)["iteration"] == layout.BASE
    play_scores(settings, 1, reference)
    assert references(run)[1] == model_digest(run, reference)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
