"""`reproduce` with real runs, and with altered records that must be reported as mismatches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spin_components.data.shards import Pair, Score, read_rows, write_rows
from spin_components.errors import ConfigError, IntegrityError
from spin_components.record.history import read_history
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.digests import digest_file
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.store.open import open_run
from spin_pipeline.cli import main
from spin_pipeline.runs.reproduction.compare import compare
from spin_pipeline.runs.reproduction.differences import ReproductionResult, format_pair
from spin_pipeline.runs.reproduction.explain import reasons
from spin_pipeline.runs.reproduction.plan import address_of, plan
from support.bounds import unit_roundoff
from support.playing import begin, play_iteration
from support.s3_server import BUCKET, S3Server

METRICS = f"{layout.epoch(0, 0)}/metrics.json"


@pytest.fixture(scope="module")
def again(finished: LocalRun, tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    """A reproduction of the finished run, by a command that resumes after its first iteration."""
    run = LocalRun(tmp_path_factory.mktemp("again") / "run")
    settings = plan(finished, read_history(finished), run.uri, None).settings
    play_iteration(settings, 0, begin(settings))
    first = run.path(layout.epoch_manifest(0, 0)).stat().st_mtime_ns
    assert main(["reproduce", finished.uri, "--into", run.uri]) == 0
    assert run.path(layout.epoch_manifest(0, 0)).stat().st_mtime_ns == first, "the first iteration was not run again"
    return run


@pytest.fixture
def recorded(finished: LocalRun, tmp_path: Path) -> LocalRun:
    """A copy of the finished run that tests alter."""
    shutil.copytree(finished.root, tmp_path / "recorded")
    return LocalRun(tmp_path / "recorded")


@pytest.fixture
def made(finished: LocalRun, tmp_path: Path) -> LocalRun:
    """Another copy of the finished run, used as its reproduction."""
    shutil.copytree(finished.root, tmp_path / "made")
    return LocalRun(tmp_path / "made")


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """The printed text in one line."""
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def compared(old: RunStore, new: RunStore, num_iterations: int = 2) -> ReproductionResult:
    return compare(old, read_history(old), new, read_history(new), num_iterations)


def alter(run: LocalRun, manifest: str, key: str, change: Callable[[Path], None]) -> None:
    """Change an output of a step, and its digest in the manifest."""
    change(run.path(key))
    written = run.read_json(manifest)
    written["outputs"][key] = digest_file(run.path(key)).model_dump()
    run.write_json(manifest, written)


def alter_record(run: LocalRun, change: Callable[[dict[str, Any]], None], key: str = layout.RUN) -> None:
    record = run.read_json(key)
    change(record)
    run.write_json(key, record)


def alter_loss(run: LocalRun, step: int, by: float) -> None:
    def change(path: Path) -> None:
        metrics = json.loads(path.read_text("utf-8"))
        metrics["steps"][step]["loss"] += by
        path.write_text(json.dumps(metrics), "utf-8")

    alter(run, layout.epoch_manifest(0, 0), METRICS, change)


def test_the_same_seed_reproduces_a_run_bit_for_bit(
    finished: LocalRun, again: LocalRun, capsys: pytest.CaptureFixture[str]
) -> None:
    for t in (0, 1):
        manifests = [read_manifest(run, layout.epoch_manifest(t, 0)).outputs for run in (finished, again)]
        weights = f"{layout.epoch(t, 0)}/policy/model.safetensors"
        assert manifests[0][weights] == manifests[1][weights]
    assert main(["reproduce", finished.uri, "--into", again.uri]) == 0
    text = printed(capsys)
    assert "reproduced before" in text
    assert "0/16 0 0 0 0 0 same same" in text
    assert "equal: data, answers, log-probabilities, losses, weights and decisions, bit for bit" in text


def test_the_first_mismatch_is_printed_with_causes_and_sets_the_exit_code(
    recorded: LocalRun, again: LocalRun, capsys: pytest.CaptureFixture[str]
) -> None:
    def older(record: dict[str, Any]) -> None:
        record["packages"]["torch"] = "2.1.0"

    alter_loss(recorded, step=1, by=3e-4)
    alter_record(recorded, older)
    assert main(["reproduce", recorded.uri, "--into", again.uri]) == 1
    text = printed(capsys)
    assert "first mismatch: iteration 0, step 2: loss 0." in text
    assert "- torch 2.1.0 there, " in text
    assert text.endswith("not equal")
    assert main(["reproduce", recorded.uri, "--into", again.uri, "--tolerance", "1e-4"]) == 1
    assert printed(capsys).endswith("not equal within 0.0001")
    assert main(["reproduce", recorded.uri, "--into", again.uri, "--tolerance", "1e-3"]) == 0
    assert printed(capsys).endswith("equal within 0.001")


def test_a_step_with_another_loss_is_named_with_both_losses(
    finished: LocalRun, recorded: LocalRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compared(recorded, finished).mismatches == []
    alter_loss(recorded, step=1, by=3e-4)
    (mismatch,) = compared(recorded, finished).mismatches
    there, here = (json.loads((run.read(METRICS) or b"").decode())["steps"][1]["loss"] for run in (recorded, finished))
    assert str(mismatch) == f"iteration 0, step 2: loss {format_pair(there, here)}"
    assert mismatch.size == pytest.approx(3e-4)
    assert [mismatch.exceeds(tolerance) for tolerance in (0, 1e-4, 1e-3)] == [True, True, False]


def test_different_answers_are_counted_and_precede_their_consequences(finished: LocalRun, recorded: LocalRun) -> None:
    key, scores = layout.generations(1, 0), layout.ref_logprobs(1, 0)

    def say_otherwise(path: Path) -> None:
        pairs = read_rows(path, Pair)
        write_rows(
            path, Pair, [replace(pair, generated_ids=[*pair.generated_ids, 5]) for pair in pairs[:3]] + pairs[3:]
        )

    def score_otherwise(path: Path) -> None:
        rows = read_rows(path, Score)
        write_rows(path, Score, [replace(row, ref_generated=row.ref_generated - 0.5) for row in rows])

    alter(recorded, layout.manifest_of(key), key, say_otherwise)
    alter(recorded, layout.manifest_of(scores), scores, score_otherwise)
    answers, logprobs = compared(recorded, finished).mismatches
    assert str(answers) == "iteration 1, generations shard 0: 3 of 16 answers differ"
    assert str(logprobs).startswith("iteration 1, ref-logprobs shard 0: log-prob of the generated answer of pair")
    others = {(1, pair.index) for pair in read_rows(recorded.path(key), Pair)[:3]}
    num_alike = sum(row.key not in others for row in read_rows(recorded.path(scores), Score))
    assert f"the greatest of {num_alike} differences" in str(logprobs)
    # of two sums below 128 nats, stored as float32
    assert logprobs.size == pytest.approx(0.5, abs=2 * 128 * unit_roundoff(torch.float32))
    assert answers.exceeds(0)
    assert not answers.exceeds(0.1)
    assert logprobs.exceeds(0.1)


def test_a_damaged_file_is_an_error_and_not_a_mismatch(
    finished: LocalRun, recorded: LocalRun, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.path(METRICS).write_text("{}")
    with open_run(recorded.uri) as run, pytest.raises(IntegrityError, match=r"metrics\.json has 2 bytes"):
        compared(run, finished)


def test_mismatches_of_data_and_decisions_exceed_any_tolerance(finished: LocalRun, recorded: LocalRun) -> None:
    def decide(manifest: dict[str, Any]) -> None:
        manifest["facts"] |= {"outcome": "regressed", "best": -1}

    def begin(manifest: dict[str, Any]) -> None:
        manifest["inputs"]["data.train (content)"] = "another"

    alter_record(recorded, decide, layout.checkpoint(0))
    alter_record(recorded, begin, layout.DATA_MANIFEST)
    exceeding = list(compared(recorded, finished).exceeding(1e9))
    outcome = read_manifest(finished, layout.checkpoint(0)).facts["outcome"]
    assert str(exceeding[0]) == "inputs: data.train (content) differs"
    assert f"iteration 0, decision: outcome regressed against {outcome}" in map(str, exceeding)


def test_steps_that_were_not_reproduced_are_missing(finished: LocalRun, made: LocalRun) -> None:
    shutil.rmtree(made.path("iterations/1"))
    assert [str(mismatch) for mismatch in compared(finished, made).mismatches] == [
        "iteration 1, generations shard 0: recorded, but not reproduced",
        "iteration 1, epoch 0: recorded, but not reproduced",
        "iteration 1, decision: recorded, but not reproduced",
    ]
    assert compared(made, finished, 1).mismatches == []


def test_possible_causes_come_from_the_records(finished: LocalRun, recorded: LocalRun) -> None:
    histories = read_history(recorded), read_history(finished)
    assert reasons(*histories)[0].startswith("the records do not explain it: versions, machine, threads")

    def older(record: dict[str, Any]) -> None:
        record["packages"]["torch"] = "2.1.0"

    def elsewhere(manifest: dict[str, Any]) -> None:
        manifest["facts"]["engine"] = "vllm"
        manifest["machine"] |= {"processor": "Abacus 9", "threads": 64, "gpu": "NVIDIA H100", "num_gpus": 1}

    def in_ranks(manifest: dict[str, Any]) -> None:
        manifest["facts"] |= {"backend": "deepspeed"}
        manifest["machine"] |= {"ranks": 4, "packages": {"transformers": "4.0"}}

    alter_record(recorded, older)
    for t in (0, 1):
        alter_record(recorded, elsewhere, layout.manifest_of(layout.generations(t, 0)))
        alter_record(recorded, in_ranks, layout.epoch_manifest(t, 0))
    causes = reasons(read_history(recorded), read_history(finished))
    here = read_manifest(finished, layout.epoch_manifest(0, 0)).machine
    version = finished.read_json(layout.RUN)["packages"]["torch"]
    assert causes[0] == f"torch 2.1.0 there, {version} here"
    text = "\n".join(causes)
    for line in (
        f"processor: {here['processor']}, Abacus 9 there, {here['processor']} here",
        "computed on: the CPU, NVIDIA H100 there, the CPU here",
        "training processes: 4 there, 1 here",
        "trained by: deepspeed there, torch here",
        "answers sampled by: vllm there, transformers here",
        "answers were sampled by vLLM, which has one seed for all of them",
        "computed on GPUs, some of whose kernels sum in a different order each time",
    ):
        assert line in text


def test_steps_record_the_causes_of_different_rounding(finished: LocalRun) -> None:
    for key in (layout.manifest_of(layout.generations(0, 0)), layout.epoch_manifest(0, 0), layout.BASE_VALIDATION):
        machine = read_manifest(finished, key).machine
        assert machine["threads"] >= 1
        assert machine["processor"]
        assert machine["instructions"] == torch.backends.cpu.get_cpu_capability()
        assert machine["packages"]["torch"] == torch.__version__
    trained = read_manifest(finished, layout.epoch_manifest(0, 0))
    assert (trained.machine["ranks"], trained.facts["backend"]) == (1, "torch")
    assert "threads" not in read_manifest(finished, layout.checkpoint(0)).machine


def test_a_plan_has_the_recorded_settings_with_automatic_choices_fixed(recorded: LocalRun) -> None:
    def leave_open(record: dict[str, Any]) -> None:
        settings = record["settings"]
        settings["run"]["max_time"] = "60"
        settings["tracking"]["tensorboard"] = True
        settings["generation"]["engine"] = "auto"
        settings["training"]["precision"] = "auto"
        settings["training"]["lr"] = [1e-3, 5e-4]
        settings["model"]["forked_from"] = "runs/before, iteration 1"
        settings["hardware"] |= {"device": "auto", "nodes": 2, "ranks": 1}

    alter_record(recorded, leave_open)
    planned = plan(recorded, read_history(recorded), None, None)
    settings, record = planned.settings, recorded.read_json(layout.RUN)
    assert (planned.num_iterations, settings.spin.max_iterations) == (2, 2)
    assert settings.run.uri == f"{recorded.uri}-again"
    assert (settings.run.max_time, settings.tracking.tensorboard) == ("", False)
    assert (settings.generation.engine, settings.training.precision) == ("transformers", "float32")
    assert settings.training.lr == [1e-3, 5e-4]
    assert settings.model.forked_from == "runs/before, iteration 1"
    assert (settings.model.base, len(settings.model.sha256)) == (record["base_model"]["uri"], 64)
    threads = read_manifest(recorded, layout.epoch_manifest(0, 0)).machine["threads"]
    assert settings.hardware.model_dump(include={"device", "nodes", "ranks", "threads"}) == {
        "device": "cpu",
        "nodes": 1,
        "ranks": 1,  # as recorded by the epoch
        "threads": threads,
    }
    changed = plan(recorded, read_history(recorded), None, 1, ["hardware.threads=3"])
    assert (changed.num_iterations, changed.settings.hardware.threads) == (1, 3)


def test_the_finished_iterations_of_a_stopped_run_are_reproduced(recorded: LocalRun) -> None:
    recorded.path(layout.checkpoint(1)).unlink()
    history = read_history(recorded)
    assert plan(recorded, history, None, None).num_iterations == 1
    with pytest.raises(ConfigError, match="--iterations 2: expected 1 to 1, which"):
        plan(recorded, history, None, 2)
    shutil.rmtree(recorded.path("iterations"))
    with pytest.raises(ConfigError, match=r"no iteration of .* has started yet"):
        plan(recorded, read_history(recorded), None, None)


def test_a_run_in_object_storage_is_compared_with_one_in_a_folder(finished: LocalRun, s3: S3Server) -> None:
    for key, size in finished.sizes("").items():
        if size and not key.startswith("events"):
            s3.path(f"reproduced/{key}").parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(finished.path(key), s3.path(f"reproduced/{key}"))
    with open_run(f"s3://{BUCKET}/reproduced") as run:
        assert plan(run, read_history(run), None, None).settings.run.uri == f"s3://{BUCKET}/reproduced-again"
        result = compared(run, finished)
    assert result.mismatches == []
    assert result.num_compared[0, "answers"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--into", "{run}"], "is inside the recorded run"),
        (["--into", "{run}/again"], "is inside the recorded run"),
        (["--into", "{run}/.."], "or contains it"),
        (["--iterations", "3"], "--iterations 3: expected 1 to 2"),
        (["--iterations", "0"], "--iterations 0: expected 1 to 2"),
        (["--tolerance", "-1"], "--tolerance -1.0: expected a finite number, 0 or above"),
        (["--tolerance", "nan"], "--tolerance nan: expected a finite number"),
        (["--set", "training.lr=1"], "only hardware.key=value may be changed"),
        (["--set", "hardware.cores=1"], "hardware.cores"),
    ],
)
def test_invalid_reproductions_are_refused(
    finished: LocalRun, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["reproduce", finished.uri, *(argument.format(run=finished.uri) for argument in arguments)]) == 2
    assert message in printed(capsys)
    assert not Path(f"{finished.uri}-again").exists()


def test_a_missing_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", str(tmp_path / "nowhere")]) == 2
    assert "no data/manifest.json" in printed(capsys)


def test_a_changed_base_model_and_changed_data_are_refused(
    recorded: LocalRun, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, data = tmp_path / "base", tmp_path / "questions.jsonl"
    shutil.copytree(tiny_llama, base)
    data.write_text('{"prompt": "a", "response": "b"}\n', "utf-8")
    record = recorded.read_json(layout.RUN)

    def elsewhere(record: dict[str, Any]) -> None:
        record["data"]["train"]["uri"] = str(data)

    alter_record(recorded, elsewhere)
    assert main(["reproduce", recorded.uri]) == 2
    assert (
        f"DataError: {data} differs from the data.train that {recorded.uri} started from: questions.jsonl"
        in printed(capsys)
    )
    recorded.write_json(layout.RUN, {**record, "base_model": {**record["base_model"], "uri": str(base)}})
    (base / "config.json").write_text((base / "config.json").read_text("utf-8") + " ", "utf-8")
    assert main(["reproduce", recorded.uri]) == 2
    assert f"ModelError: {base} differs from the base model that {recorded.uri} started from: config.json" in printed(
        capsys
    )


def test_the_default_address_is_beside_the_recorded_run() -> None:
    assert address_of("/runs/one", None) == "/runs/one-again"
    assert address_of("/runs/one", "/runs/one-more") == "/runs/one-more"
    assert address_of("s3://bucket/runs/one/", None) == "s3://bucket/runs/one-again"
    with pytest.raises(ConfigError, match="a whole bucket; give an address for the new run with --into"):
        address_of("s3://bucket", None)


def test_different_numbers_are_printed_with_the_digits_that_distinguish_them() -> None:
    assert format_pair(0.68123, 0.68151) == "0.6812 against 0.6815"
    assert format_pair(-1234.512, -1234.518) == "-1234.51 against -1234.52"
    assert format_pair(1.0, 1.0 + 2**-52) == "1.0 against 1.0000000000000002"
