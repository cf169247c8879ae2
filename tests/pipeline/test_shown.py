"""The KFP artifacts of each step, which the Kubeflow UI shows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from kfp import dsl

from spin_components.model.stored import model_files
from spin_components.runtime import kfp_artifacts as shown
from spin_components.runtime import result_artifacts
from spin_components.runtime.result_artifacts import show_result
from spin_components.store import layout
from spin_components.store.digests import digest_of
from spin_components.store.lease import RUNNER
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest, read_manifest


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


def shown_checkpoint(run: LocalRun, folder: Path) -> tuple[dsl.Model, dsl.Metrics]:
    model, metrics = dsl.Model(uri=str(folder / "model")), dsl.Metrics(uri="unused")
    samples, report = dsl.Markdown(uri=str(folder / "samples.md")), dsl.HTML(uri=str(folder / "report"))
    shown.show_checkpoint(model, metrics, samples, report, run.uri, 1, "policy")
    return model, metrics


def test_generated_answers_cannot_escape_their_markdown_block(finished: LocalRun, tmp_path: Path) -> None:
    shown_checkpoint(finished, tmp_path)
    text = (tmp_path / "samples.md").read_text("utf-8")
    assert text.startswith("# Iteration 1\n\n## Shard 0\n\n16 answers by transformers")
    assert text.count("**Human**") == 8
    for block in text.split("**\n\n")[1:]:
        answer = block.split("\n\n**")[0].split("\n\n### ")[0]
        assert all(line.startswith("    ") for line in answer.strip("\n").splitlines())


def test_training_and_validation_log_metrics_artifacts(finished: LocalRun) -> None:
    metrics = dsl.Metrics(uri="unused")
    shown.show_training(metrics, finished.uri, 1, 0, "policy")
    assert (metrics.metadata["num_pairs"], metrics.metadata["iteration"], metrics.metadata["epoch"]) == (32, 1, 0)
    assert metrics.metadata["1_loss"] > 0
    base = dsl.Metrics(uri="unused")
    shown.show_validation(base, finished.uri, layout.BASE, 0, "policy")
    assert base.metadata["1_val_loss"] == finished.read_json(layout.BASE_VALIDATION)["facts"]["val_loss"]
    assert "iteration" not in base.metadata
    for each in (metrics, base):
        assert len(each.metadata) <= 10
        assert min(each.metadata).startswith("1_")  # the UI sorts by name


def test_metrics_of_a_control_carry_its_iteration(finished: LocalRun, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {**finished.read_json(layout.BASE_VALIDATION)["facts"], "num_steps": 4}
    monkeypatch.setattr(shown, "read_manifest", lambda *_: SimpleNamespace(facts=facts))
    monkeypatch.setattr(shown, "validated_epoch", lambda *_: (layout.control(1), 0))
    trained, validated = dsl.Metrics(uri="unused"), dsl.Metrics(uri="unused")
    shown.show_control(trained, finished.uri, 1, "policy")
    shown.show_validation(validated, finished.uri, layout.control(1), 0, "policy")
    for metrics in (trained, validated):
        assert (metrics.metadata["iteration"], metrics.metadata["1_val_loss"]) == (1, facts["val_loss"])


def test_an_evaluation_logs_the_judge_and_the_first_of_many_tasks(
    finished: LocalRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {f"task_{number:02}": {"metrics": {"acc": {"value": 0.5, "stderr": 0.1}}} for number in range(57)}
    facts = {"tasks": {"results": results}, "judge": {"mean": 7.5, "stderr": 0.2}}
    monkeypatch.setattr(shown, "read_manifest", lambda *_: SimpleNamespace(facts=facts))
    metrics = dsl.Metrics(uri="unused")
    shown.show_evaluation(metrics, finished.uri, 1, "done")
    first = [f"task_{number:02}/acc" for number in range(7)]
    assert list(metrics.metadata) == ["judge", *first, "iteration"]


def test_a_base_model_that_nothing_has_beaten_is_the_best(
    finished: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"iteration": layout.BASE, "uri": "builtin:tiny-llama", "val_loss": 2.5}
    monkeypatch.setattr(result_artifacts, "read_pointer", lambda *_: base)
    model, metrics = dsl.Model(uri=str(tmp_path / "model")), dsl.Metrics(uri="unused")
    show_result(model, metrics, dsl.HTML(uri=str(tmp_path / "report")), finished.uri, "id", "")
    assert (model.metadata["address"], model.metadata["iteration"]) == ("builtin:tiny-llama", -1)
    assert (metrics.metadata["1_val_loss"], metrics.metadata["best_iteration"]) == (2.5, -1)


def test_the_last_checkpoint_has_a_model_artifact_although_the_run_stops(finished: LocalRun, tmp_path: Path) -> None:
    model, metrics = shown_checkpoint(finished, tmp_path)
    facts = finished.read_json(layout.checkpoint(1))["facts"]
    assert model.metadata["address"] == facts["checkpoint_uri"]
    assert model.metadata["sha256"] == digest_of(model_files(finished, facts["checkpoint_uri"]))
    assert model.metadata["is_best"] is True
    assert (model.metadata["outcome"], model.metadata["decision"]) == ("better", "done")
    assert metrics.metadata["1_val_loss"] == facts["val_loss"]
    assert (metrics.metadata["iteration"], metrics.metadata["epoch"]) == (1, facts["epoch"])
    for name, against in (("from_base", -1), ("from_best", 0)):
        assert facts[name]["against"] == against
        assert metrics.metadata[name] == facts[name]["mean"]
    assert len(metrics.metadata) <= 10


def test_the_result_is_one_row_a_run(finished: LocalRun, tmp_path: Path) -> None:
    model, metrics = dsl.Model(uri=str(tmp_path / "model")), dsl.Metrics(uri="unused")
    report = dsl.HTML(uri=str(tmp_path / "report"))
    folder, _, name = finished.uri.rpartition("/")
    ended = show_result(model, metrics, report, f"{folder}/{{id}}", name, "")
    facts = finished.read_json(layout.checkpoint(1))["facts"]
    assert ended == f"done after iteration 1; the best is iteration 1, val_loss {facts['val_loss']}"
    assert model.metadata["address"] == facts["checkpoint_uri"]
    assert (metrics.metadata["1_val_loss"], metrics.metadata["best_iteration"]) == (facts["val_loss"], 1)
    assert metrics.metadata["num_iterations"] == 2
    assert (tmp_path / "report").read_bytes() == finished.read(layout.REPORT)


def test_a_result_without_a_run_is_a_sentence(tmp_path: Path) -> None:
    artifacts = (dsl.Model(uri="unused"), dsl.Metrics(uri="unused"), dsl.HTML(uri="unused"))
    assert show_result(*artifacts, str(tmp_path / "x"), "id", "") == (
        "nothing: the run has not begun; see the log of prepare"
    )
    assert show_result(*artifacts, "ftp://{id}", "id", "").startswith("unknown: the run's storage cannot be read")


def kfp_takes(value: object) -> bool:
    """KFP's rule for a value of an artifact's metadata; it fails the task on a null, and NaN is no JSON."""
    if isinstance(value, (str, bool, int)):
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (list, dict)) and all(
        kfp_takes(each) for each in (value if isinstance(value, list) else value.values())
    )


def test_kfp_takes_the_metadata_of_every_artifact(
    finished: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where losses are not finite, which manifests hold as null."""

    def without_numbers(run: LocalRun, key: str) -> Manifest:
        manifest = read_manifest(run, key)
        unknown = {name: None for name, value in manifest.facts.items() if isinstance(value, float)}
        return manifest.model_copy(
            update={"facts": {**manifest.facts, **unknown, "from_base": None, "from_best": None}}
        )

    monkeypatch.setattr(shown, "read_manifest", without_numbers)
    monkeypatch.setattr(result_artifacts, "read_manifest", without_numbers)
    run = finished
    artifacts: list[dsl.Artifact] = [dsl.Dataset(uri=str(tmp_path / "dataset"))]
    shown.show_data(artifacts[0], run.uri, "model")
    artifacts += shown_checkpoint(run, tmp_path)
    for show, t in ((shown.show_training, 1), (shown.show_validation, 1), (shown.show_validation, layout.BASE)):
        artifacts.append(dsl.Metrics(uri="unused"))
        show(artifacts[-1], run.uri, t, 0, "policy")
    model, metrics = dsl.Model(uri=str(tmp_path / "best")), dsl.Metrics(uri="unused")
    show_result(model, metrics, dsl.HTML(uri=str(tmp_path / "final")), run.uri, "id", "")
    for artifact in (*artifacts, model, metrics):
        assert artifact.metadata or artifact.uri == "unused"
        for name, value in artifact.metadata.items():
            assert kfp_takes(value), name
    assert artifacts[1].metadata["address"]


def test_a_stopped_step_has_no_artifacts(finished: LocalRun) -> None:
    metrics = dsl.Metrics(uri="unused")
    shown.show_training(metrics, finished.uri, 1, 0, "")
    assert not metrics.metadata


def test_an_artifact_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = dsl.Metrics(uri="unused")
    shown.show_validation(metrics, str(tmp_path / "nothing"), 0, 0, "policy")
    assert metrics.metadata == {}
    assert "will not show this step's artifacts: IntegrityError" in caplog.text
