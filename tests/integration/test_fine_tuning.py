"""The warm-up before self-play, and the controls beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_components.control.step import control
from spin_components.errors import ConfigError, InputsChangedError
from spin_components.record.history import read_history
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.training.course import Course
from spin_components.validate.step import validate
from spin_components.warm_up.step import is_exhausted
from spin_pipeline.runs.export import model_card
from spin_pipeline.runs.published import find_published, forked_values
from spin_pipeline.runs.status import read_status
from support import bounds
from support.killed_run import play_until_saved
from support.playing import begin, hardware, play, play_anywhere, play_iteration, play_warm_up
from support.small import small_settings

MakeSettings = Callable[..., Settings]
WARM_UP = {"max_epochs": 2, "lr": 3e-3}


def fine_tuning_losses(run: LocalRun, folder: str) -> list[float]:
    """The loss of every step of the warm-up or of the controls, in order."""
    keys = sorted(key for key in run.sizes(folder) if key.endswith("/metrics.json"))
    rows = [row for key in keys for row in json.loads(run.read(key) or b"")["steps"]]
    assert [row["step"] for row in rows] == [*range(1, len(rows) + 1)]
    assert rows
    return [row["loss"] for row in rows]


def policies(run: LocalRun) -> dict[str, str]:
    """SHA-256 of every file of a policy that a manifest lists, by key."""
    return {
        key: file.sha256
        for manifest in read_history(run).manifests()
        for key, file in manifest.outputs.items()
        if "/policy/" in key or key.endswith(".parquet")
    }


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, question_file: Path) -> LocalRun:
    """Two epochs of warm-up, then an iteration with its control; not to be written to."""
    settings = small_settings(
        tmp_path_factory.mktemp("warmed") / "run",
        tiny_llama,
        question_file,
        warm_up=WARM_UP,
        control={"sft": True},
        generation={"max_new_tokens": 6},
        validation={"num_samples": 8},
        training={"save_interval": 2},
        hardware={"threads": 1},
    )
    return play(settings)


def settings_of(run: LocalRun, uri: Path, /, **sections: dict[str, Any]) -> Settings:
    """The settings of a run, with another address and other values."""
    values = run.read_json(layout.RUN)["settings"]
    for name, table in {"run": {"uri": str(uri)}, **sections}.items():
        values[name] = {**values[name], **table}
    return Settings.model_validate(values)


def test_the_warm_up_is_the_first_reference(warmed: LocalRun) -> None:
    facts = read_manifest(warmed, layout.WARM_UP_MANIFEST).facts
    losses = [facts["base_val_loss"], *(epoch["val_loss"] for epoch in facts["epochs"])]
    assert losses == sorted(losses, reverse=True), "each epoch lowers the held-out loss"
    assert (facts["epoch"], facts["num_steps"], facts["ended_by"]) == (1, 6, "max_epochs")
    published = read_manifest(warmed, layout.checkpoint(0)).facts
    assert published["reference_uri"] == facts["policy_uri"]
    assert published["from_best"]["against"] == layout.WARM_UP
    assert published["from_base"]["mean"] < published["from_best"]["mean"], "the warm-up is a part of the way"
    assert published["step"] == 3, "the run's steps are those of self-play"
    assert not warmed.sizes(f"{layout.epoch(layout.WARM_UP, 0)}/policy"), "the weights of one epoch are kept"
    assert not list(warmed.root.rglob("warm_up/**/trainer"))


def test_the_loss_after_an_epoch_is_that_of_its_validation(warmed: LocalRun, tiny_llama: Path) -> None:
    for number, manifest in (
        (layout.WARM_UP, layout.WARM_UP_MANIFEST),
        (layout.control(0), layout.control_manifest(0)),
    ):
        facts = read_manifest(warmed, manifest).facts
        check = read_manifest(warmed, layout.validation(number, facts["epoch"])).facts
        assert facts["val_loss"] == pytest.approx(check["val_loss"], abs=bounds.of_small_run(tiny_llama, num_steps=0))


def test_a_control_makes_the_updates_of_its_iteration(warmed: LocalRun) -> None:
    facts, spin = (
        read_manifest(warmed, layout.control_manifest(0)).facts,
        read_manifest(warmed, layout.checkpoint(0)).facts,
    )
    assert (facts["num_steps"], facts["consumed_samples"]) == (spin["step"], spin["consumed_samples"])
    assert facts["peak_lr"] == spin["peak_lr"]
    settings = settings_of(warmed, warmed.root)
    own, its = (Course(settings, number).load(warmed) for number in (layout.control(0), 0))
    assert own.batches == its.batches
    pairs, its_pairs = (list(each.read(range(len(each.rows))).pairs) for each in (own, its))
    assert [pair.actual_ids for pair in pairs] == [pair.actual_ids for pair in its_pairs]
    assert not own.scores
    assert not any(pair.generated_ids for pair in pairs)
    rates = [
        [row["lr"] for row in json.loads(warmed.read(f"{layout.epoch(t, 0)}/metrics.json") or b"")["steps"]]
        for t in (0, layout.control(0))
    ]
    assert rates[0] == rates[1]


def test_the_status_has_the_warm_up_and_the_control(warmed: LocalRun) -> None:
    status = read_status(str(warmed.root))
    assert status.state == "done"
    assert (status.iteration, status.epoch, status.step) == (0, 0, 3)
    assert status.warm_up is not None
    assert status.warm_up.greedy_chrf is not None
    (control,) = status.control
    assert control.greedy_chrf is not None
    assert set(control.changes) == {"val_loss", "chrf", "match", "ended", "repetition"}
    assert control.sentence.startswith("Against as many (3) updates of supervised fine-tuning, self-play")
    for name, change in control.changes.items():
        assert change["low"] <= change["mean"] <= change["high"], name


def test_the_report_shows_the_warm_up_and_the_control(warmed: LocalRun) -> None:
    page = (warmed.root / layout.REPORT).read_text("utf-8")
    assert '<th scope="row">warm-up' in page
    assert '<th scope="row">control of iteration 0' in page
    assert "The warm-up before it brought the loss from" in page
    assert "updates of supervised fine-tuning, self-play up to iteration 0 did" in page


def test_the_warm_up_can_be_exported(warmed: LocalRun) -> None:
    found = find_published(warmed, "warm-up")
    assert found.uri == warmed.uri_of(f"{layout.epoch(layout.WARM_UP, 1)}/policy")
    assert "| warm-up |" in model_card(warmed, found)
    forked = forked_values(warmed, "warm-up")
    assert forked["model"]["base"] == found.uri
    assert "warm_up" not in forked, "it is not done again"


def test_a_finished_run_is_not_done_again(warmed: LocalRun) -> None:
    settings, before = settings_of(warmed, warmed.root), policies(warmed)
    changed = {path: path.stat().st_mtime_ns for path in warmed.root.rglob("*.safetensors")}
    play_anywhere(settings)
    assert policies(warmed) == before
    assert {path: path.stat().st_mtime_ns for path in warmed.root.rglob("*.safetensors")} == changed


@pytest.mark.usefixtures("warm_python")
def test_a_run_killed_inside_the_warm_up_and_the_control_resumes_to_the_same_bits(
    warmed: LocalRun, tmp_path: Path
) -> None:
    settings = settings_of(warmed, tmp_path / "run")
    run = LocalRun(tmp_path / "run")
    for step, number, epoch in (("warm-up", layout.WARM_UP, 1), ("control", layout.control(0), 0)):
        play_until_saved(settings, step, epoch, done=1)
        assert run.exists(layout.partial(number, epoch)), "it was to be killed inside the epoch"
    play(settings)
    assert policies(run) == policies(warmed)
    for folder in ("warm_up", layout.CONTROLS):
        assert fine_tuning_losses(run, folder) == fine_tuning_losses(warmed, folder)
    assert not run.exists(layout.partial(layout.WARM_UP, 1))
    assert not list(run.root.rglob("*.part"))


def test_padded_batches_give_the_losses_of_packed_ones(warmed: LocalRun, tmp_path: Path, tiny_llama: Path) -> None:
    padded: dict[str, Any] = {
        "training": {"packing": "off"},
        "validation": {"num_samples": 0},
        "control": {"sft": False},
    }
    settings, run = settings_of(warmed, tmp_path / "run", **padded), LocalRun(tmp_path / "run")
    play_warm_up(settings, begin(settings))
    packings = [
        read_manifest(each, layout.epoch_manifest(layout.WARM_UP, 0)).inputs["packing"] for each in (warmed, run)
    ]
    assert packings == ["packed", "aligned"]
    assert fine_tuning_losses(run, "warm_up") == pytest.approx(
        fine_tuning_losses(warmed, "warm_up"), abs=bounds.of_small_run(tiny_llama, num_steps=6)
    )


@pytest.mark.usefixtures("warm_python")
def test_two_ranks_give_the_losses_of_one(warmed: LocalRun, tmp_path: Path, tiny_llama: Path) -> None:
    training = {"backend": "deepspeed", "zero_stage": 2, "micro_batch_size": 2}
    machine = {"ranks": 2, "threads": 1}
    plain: dict[str, Any] = {"validation": {"num_samples": 0}, "control": {"sft": False}}
    settings = settings_of(warmed, tmp_path / "run", training=training, hardware=machine, **plain)
    play_warm_up(settings, begin(settings))
    run = LocalRun(tmp_path / "run")
    expected = fine_tuning_losses(warmed, "warm_up")
    assert fine_tuning_losses(run, "warm_up") == pytest.approx(
        expected, abs=bounds.of_small_run(tiny_llama, num_steps=6)
    )
    assert read_manifest(run, layout.epoch_manifest(layout.WARM_UP, 0)).machine["ranks"] == 2


def test_a_control_that_is_begun_first_trains_the_one_before_to_the_same_bits(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {
        "spin": {"max_iterations": 2},
        "selection": {"on_regression": "continue"},
        "control": {"sft": True},
        "validation": {"num_samples": 0},
        "hardware": {"threads": 1},
    }
    in_order = play(make_settings(run={"uri": str(tmp_path / "in-order")}, **sections))
    settings = make_settings(**sections)
    first = begin(settings)
    play_iteration(settings, 1, play_iteration(settings, 0, first))
    uri, machine = settings.run.uri, hardware(settings)
    last = control(uri, 1, first, machine)
    run = LocalRun(Path(uri))
    weights = run.resolve(str(read_manifest(run, layout.control_manifest(0)).facts["policy_uri"]))
    assert Path(weights).is_dir(), "it is not validated yet"
    for number, policy in ((1, last), (0, control(uri, 0, first, machine))):
        validate(uri, layout.control(number), 0, policy, machine, "")
    assert not Path(weights).exists()
    assert fine_tuning_losses(run, "control") == fine_tuning_losses(in_order, "control")
    assert policies(run) == policies(in_order)


@pytest.mark.parametrize(
    "lora", [{"export": "adapter"}, {"export": "merged"}, {"export": "adapter", "quantize": "nf4"}]
)
def test_adapters_are_trained_on_those_of_the_warm_up_and_of_the_control_before(
    lora: dict[str, str], make_settings: MakeSettings
) -> None:
    run = play(
        make_settings(
            lora={"r": 2, **lora},
            warm_up={"max_epochs": 1, "lr": 1e-2},
            control={"sft": True},
            spin={"max_iterations": 2, "history": 0},
            selection={"on_regression": "continue"},
            validation={"num_samples": 0},
            generation={"max_new_tokens": 6},
            hardware={"threads": 1},
        )
    )
    facts = read_manifest(run, layout.checkpoint(0)).facts
    assert layout.epoch_of(run.key_of(facts["reference_uri"])) == (layout.WARM_UP, 0)
    warm_up, *controls = (
        read_manifest(run, manifest).facts
        for manifest in (layout.WARM_UP_MANIFEST, layout.control_manifest(0), layout.control_manifest(1))
    )
    assert warm_up["val_loss"] < warm_up["base_val_loss"]
    assert [each["num_steps"] for each in controls] == [3, 3]
    means = [warm_up["val_loss"], *(each.val_loss for each in read_status(str(run.root)).control)]
    assert means == sorted(means, reverse=True), "each goes on from the one before"
    # each epoch's loss as training measured it is that of the model as it is stored and read again
    first_losses = fine_tuning_losses(run, layout.CONTROLS)
    assert first_losses[0] < fine_tuning_losses(run, "warm_up")[0]
    assert first_losses[3] < first_losses[0]


def test_the_base_model_stays_where_no_epoch_is_better(make_settings: MakeSettings) -> None:
    settings = make_settings(
        warm_up={"max_epochs": 3, "lr": 10.0, "patience": 1}, validation={"num_samples": 0}, hardware={"threads": 1}
    )
    base = begin(settings)
    assert play_warm_up(settings, base) == base
    run = LocalRun(Path(settings.run.uri))
    facts = read_manifest(run, layout.WARM_UP_MANIFEST).facts
    assert (facts["epoch"], len(facts["epochs"]), facts["ended_by"]) == (None, 1, "patience")
    play_iteration(settings, 0, base)
    assert read_manifest(run, layout.checkpoint(0)).facts["from_best"]["against"] == layout.BASE
    with pytest.raises(ConfigError, match="lowered no loss, and has no model"):
        find_published(run, "warm-up")


def test_other_settings_of_a_warm_up_that_has_begun_are_refused(warmed: LocalRun) -> None:
    changed = settings_of(warmed, warmed.root, warm_up={**WARM_UP, "max_epochs": 3})
    with pytest.raises(InputsChangedError, match=r"warm_up\.max_epochs was 2, now 3"):
        begin(changed)


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([2.0], 1, False),
        ([2.0, 1.5, 1.4], 1, False),
        ([2.0, 1.5, 1.5], 1, True),  # not lower
        ([2.0, 1.5, 1.6], 2, False),
        ([2.0, 1.5, 1.6, 1.7], 2, True),
        ([2.0, 2.5, 2.6], 0, False),  # all epochs
        ([2.0, 2.5], 1, True),
    ],
)
def test_patience_counts_the_epochs_since_the_lowest_loss(losses: list[float], patience: int, expected: bool) -> None:
    assert is_exhausted(losses, patience) == expected
