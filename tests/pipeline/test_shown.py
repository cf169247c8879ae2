"""The KFP artifacts of each step, which the Kubeflow UI shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kfp import dsl

from spin_components.model.stored import model_files
from spin_components.runtime import kfp_artifacts as shown
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.lease import RUNNER
from spin_components.store.local import LocalRun


@pytest.fixture(autouse=True)
def on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one machine nobody would look."""
    monkeypatch.delenv(RUNNER, raising=False)


def test_the_dataset_artifact_names_its_sources(finished: LocalRun, tmp_path: Path) -> None:
    dataset = dsl.Dataset(uri=str(tmp_path / "dataset"))
    shown.show_data(dataset, finished.uri, "model")
    record = finished.read_json(layout.RUN)
    assert dataset.metadata["base_model"] == record["base_model"]["uri"]
    assert dataset.metadata["sources"] == {"train": record["data"]["train"]["uri"]}
    assert json.loads((tmp_path / "dataset").read_text("utf-8")) == dataset.metadata


def test_generated_answers_cannot_escape_their_markdown_block(finished: LocalRun, tmp_path: Path) -> None:
    samples = dsl.Markdown(uri=str(tmp_path / "samples.md"))
    shown.show_samples(samples, finished.uri, 1, 0, "generations")
    text = (tmp_path / "samples.md").read_text("utf-8")
    assert text.startswith("# Iteration 1, shard 0\n\n16 answers by transformers")
    assert text.count("**Human**") == 8
    for block in text.split("**\n\n")[1:]:
        answer = block.split("\n\n**")[0].split("\n\n## ")[0]
        assert all(line.startswith("    ") for line in answer.strip("\n").splitlines())


def test_training_and_validation_log_metrics_artifacts(finished: LocalRun) -> None:
    metrics = dsl.Metrics(uri="unused")
    shown.show_training(metrics, finished.uri, 1, 0, "policy")
    assert (metrics.metadata["num_pairs"], metrics.metadata["num_history"]) == (32, 16)
    assert metrics.metadata["loss"] > 0
    shown.show_validation(metrics, finished.uri, layout.BASE, 0, "policy")
    base = finished.read_json(layout.BASE_VALIDATION)["facts"]["val_loss"]
    assert metrics.metadata["val_loss"] == base


def test_the_last_checkpoint_has_a_model_artifact_although_the_run_stops(finished: LocalRun, tmp_path: Path) -> None:
    model, metrics = dsl.Model(uri=str(tmp_path / "model")), dsl.Metrics(uri="unused")
    shown.show_checkpoint(model, metrics, dsl.HTML(uri=str(tmp_path / "report")), finished.uri, 1, "policy")
    facts = finished.read_json(layout.checkpoint(1))["facts"]
    assert model.metadata["address"] == facts["checkpoint_uri"]
    assert model.metadata["sha256"] == digest_of(model_files(finished, facts["checkpoint_uri"]))
    assert model.metadata["is_best"] is True
    assert metrics.metadata["val_loss"] == facts["val_loss"]
    assert (model.metadata["outcome"], model.metadata["decision"]) == ("better", "done")
    for name, against in (("from_base", -1), ("from_reference", 0), ("from_best", 0)):
        change = facts[name]
        assert change["against"] == against
        shown_change = [metrics.metadata[key] for key in (name, f"{name}_low", f"{name}_high")]
        assert shown_change == [change["mean"], change["low"], change["high"]]


def test_a_stopped_step_has_no_artifacts(finished: LocalRun, tmp_path: Path) -> None:
    samples = dsl.Markdown(uri=str(tmp_path / "samples.md"))
    shown.show_samples(samples, finished.uri, 1, 0, "")
    assert not (tmp_path / "samples.md").exists()


def test_an_artifact_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = dsl.Metrics(uri="unused")
    shown.show_validation(metrics, str(tmp_path / "nothing"), 0, 0, "policy")
    assert metrics.metadata == {}
    assert "will not show this step's artifacts: IntegrityError" in caplog.text
