"""A run made again from its own record, for real; and altered records, to see that it is noticed and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bounds import unit_roundoff
from playing import begin, play_iteration
from s3_server import BUCKET, S3Server
from spin_components.data.shards import Pair, Score, read_rows, write_rows
from spin_components.errors import ConfigError, IntegrityError
from spin_components.report.history import read_history
from spin_components.store import layout
from spin_components.store.digests import digest_file
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.store.run import RunStore, open_run
from spin_pipeline.cli import main
from spin_pipeline.reproduction.holding import hold
from spin_pipeline.reproduction.parting import Held, told_apart
from spin_pipeline.reproduction.plan import address_of, plan
from spin_pipeline.reproduction.reasons import reasons

METRICS = f"{layout.epoch(0, 0)}/metrics.json"


@pytest.fixture(scope="module")
def again(finished: LocalRun, tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    """The finished run made again, by a command that found the first iteration of it done."""
    run = LocalRun(tmp_path_factory.mktemp("again") / "run")
    settings = plan(finished, read_history(finished), run.uri, None).settings
    play_iteration(settings, 0, begin(settings))
    first = run.path(layout.epoch_manifest(0, 0)).stat().st_mtime_ns
    assert main(["reproduce", finished.uri, "--into", run.uri]) == 0
    assert run.path(layout.epoch_manifest(0, 0)).stat().st_mtime_ns == first, "it went on from there"
    return run


@pytest.fixture
def recorded(finished: LocalRun, tmp_path: Path) -> LocalRun:
    """A copy of the finished run, to be altered."""
    shutil.copytree(finished.root, tmp_path / "recorded")
    return LocalRun(tmp_path / "recorded")


@pytest.fixture
def made(finished: LocalRun, tmp_path: Path) -> LocalRun:
    """Another copy, in the place of a run that was made again."""
    shutil.copytree(finished.root, tmp_path / "made")
    return LocalRun(tmp_path / "made")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """All that was printed, in one line."""
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def held(old: RunStore, new: RunStore, num_iterations: int = 2) -> Held:
    return hold(old, read_history(old), new, read_history(new), num_iterations)


def alter(run: LocalRun, manifest: str, key: str, change: Callable[[Path], None]) -> None:
    """Have a run say that a step wrote something else."""
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


def test_one_seed_repeats_a_run_bit_for_bit(
    finished: LocalRun, again: LocalRun, capsys: pytest.CaptureFixture[str]
) -> None:
    for t in (0, 1):
        manifests = [read_manifest(run, layout.epoch_manifest(t, 0)).outputs for run in (finished, again)]
        weights = f"{layout.epoch(t, 0)}/policy/model.safetensors"
        assert manifests[0][weights] == manifests[1][weights]
    assert main(["reproduce", finished.uri, "--into", again.uri]) == 0
    text = said(capsys)
    assert "made again before" in text
    assert "0/16 0 0 0 0 0 same same" in text
    assert "equal: data, answers, log-probabilities, losses, weights and decisions, bit for bit" in text


def test_where_runs_part_is_said_with_reasons_and_by_the_exit_code(
    recorded: LocalRun, again: LocalRun, capsys: pytest.CaptureFixture[str]
) -> None:
    def older(record: dict[str, Any]) -> None:
        record["packages"]["torch"] = "2.1.0"

    alter_loss(recorded, step=1, by=3e-4)
    alter_record(recorded, older)
    assert main(["reproduce", recorded.uri, "--into", again.uri]) == 1
    text = said(capsys)
    assert "the runs part first at iteration 0, step 2: loss 0." in text
    assert "- torch 2.1.0 there, " in text
    assert text.endswith("not equal")
    assert main(["reproduce", recorded.uri, "--into", again.uri, "--tolerance", "1e-4"]) == 1
    assert said(capsys).endswith("not equal within 0.0001")
    assert main(["reproduce", recorded.uri, "--into", again.uri, "--tolerance", "1e-3"]) == 0
    assert said(capsys).endswith("equal within 0.001")


def test_a_step_whose_loss_differs_is_named_with_both_numbers(
    finished: LocalRun, recorded: LocalRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert held(recorded, finished).partings == []
    alter_loss(recorded, step=1, by=3e-4)
    (found,) = held(recorded, finished).partings
    there, here = (json.loads((run.read(METRICS) or b"").decode())["steps"][1]["loss"] for run in (recorded, finished))
    assert str(found) == f"iteration 0, step 2: loss {told_apart(there, here)}"
    assert found.size == pytest.approx(3e-4)
    assert [found.counts(tolerance) for tolerance in (0, 1e-4, 1e-3)] == [True, True, False]


def test_answers_that_differ_are_counted_and_come_before_what_follows_from_them(
    finished: LocalRun, recorded: LocalRun
) -> None:
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
    answers, logprobs = held(recorded, finished).partings
    assert str(answers) == "iteration 1, generations shard 0: 3 of 16 answers differ"
    assert str(logprobs).startswith("iteration 1, ref-logprobs shard 0: log-prob of the generated answer of pair")
    others = {(1, pair.index) for pair in read_rows(recorded.path(key), Pair)[:3]}
    num_alike = sum(row.key not in others for row in read_rows(recorded.path(scores), Score))
    assert f"the greatest of {num_alike} differences" in str(logprobs)
    # of two sums below 128 nats, stored as float32
    assert logprobs.size == pytest.approx(0.5, abs=2 * 128 * unit_roundoff(torch.float32))
    assert answers.counts(0)
    assert not answers.counts(0.1)
    assert logprobs.counts(0.1)


def test_a_file_that_is_not_what_its_manifest_says_is_an_error_and_no_difference(
    finished: LocalRun, recorded: LocalRun, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.path(METRICS).write_text("{}")
    with open_run(recorded.uri) as run, pytest.raises(IntegrityError, match=r"metrics\.json has 2 bytes"):
        held(run, finished)


def test_data_and_decisions_count_whatever_the_tolerance(finished: LocalRun, recorded: LocalRun) -> None:
    def decide(manifest: dict[str, Any]) -> None:
        manifest["facts"] |= {"outcome": "regressed", "best": -1}

    def begin(manifest: dict[str, Any]) -> None:
        manifest["inputs"]["data.train (content)"] = "another"

    alter_record(recorded, decide, layout.checkpoint(0))
    alter_record(recorded, begin, layout.DATA_MANIFEST)
    counting = list(held(recorded, finished).counting(1e9))
    outcome = read_manifest(finished, layout.checkpoint(0)).facts["outcome"]
    assert str(counting[0]) == "what the runs began with: data.train (content) differs"
    assert f"iteration 0, decision: outcome regressed against {outcome}" in map(str, counting)


def test_what_was_not_made_again_is_missing(finished: LocalRun, made: LocalRun) -> None:
    shutil.rmtree(made.path("iterations/1"))
    assert [str(found) for found in held(finished, made).partings] == [
        "iteration 1, generations shard 0: recorded, but not made again",
        "iteration 1, epoch 0: recorded, but not made again",
        "iteration 1, decision: recorded, but not made again",
    ]
    assert held(made, finished, 1).partings == []


def test_the_records_name_reasons(finished: LocalRun, recorded: LocalRun) -> None:
    histories = read_history(recorded), read_history(finished)
    assert reasons(*histories)[0].startswith("nothing that is recorded explains it: versions, machine, threads")

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
    found = reasons(read_history(recorded), read_history(finished))
    here = read_manifest(finished, layout.epoch_manifest(0, 0)).machine
    version = finished.read_json(layout.RUN)["packages"]["torch"]
    assert found[0] == f"torch 2.1.0 there, {version} here"
    text = "\n".join(found)
    for line in (
        f"processor: {here['processor']}, Abacus 9 there, {here['processor']} here",
        "computed on: the CPU, NVIDIA H100 there, the CPU here",
        "training processes: 4 there, 1 here",
        "trained by: deepspeed there, torch here",
        "answers sampled by: vllm there, transformers here",
        "answers were sampled by vLLM, which has one seed for all of them",
        "computed on GPUs, some of whose kernels add in another order each time",
    ):
        assert line in text


def test_steps_record_what_their_rounding_depends_on(finished: LocalRun) -> None:
    for key in (layout.manifest_of(layout.generations(0, 0)), layout.epoch_manifest(0, 0), layout.BASE_VALIDATION):
        machine = read_manifest(finished, key).machine
        assert machine["threads"] >= 1
        assert machine["processor"]
        assert machine["instructions"] == torch.backends.cpu.get_cpu_capability()
        assert machine["packages"]["torch"] == torch.__version__
    trained = read_manifest(finished, layout.epoch_manifest(0, 0))
    assert (trained.machine["ranks"], trained.facts["backend"]) == (1, "torch")
    assert "threads" not in read_manifest(finished, layout.checkpoint(0)).machine


def test_a_plan_is_the_recorded_settings_with_what_was_left_open_as_it_came_out(recorded: LocalRun) -> None:
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
    found = plan(recorded, read_history(recorded), None, None)
    settings, record = found.settings, recorded.read_json(layout.RUN)
    assert (found.num_iterations, settings.spin.max_iterations) == (2, 2)
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
        "ranks": 1,  # as the epoch says that there were
        "threads": threads,
    }
    changed = plan(recorded, read_history(recorded), None, 1, ["hardware.threads=3"])
    assert (changed.num_iterations, changed.settings.hardware.threads) == (1, 3)


def test_of_a_run_that_stopped_early_the_finished_iterations_are_made_again(recorded: LocalRun) -> None:
    recorded.path(layout.checkpoint(1)).unlink()
    history = read_history(recorded)
    assert plan(recorded, history, None, None).num_iterations == 1
    with pytest.raises(ConfigError, match="--iterations 2: expected 1 to 1, which"):
        plan(recorded, history, None, 2)
    shutil.rmtree(recorded.path("iterations"))
    with pytest.raises(ConfigError, match=r"no iteration of .* has begun yet"):
        plan(recorded, read_history(recorded), None, None)


def test_a_run_in_object_storage_is_held_against_one_in_a_folder(finished: LocalRun, s3: S3Server) -> None:
    for key, size in finished.sizes("").items():
        if size and not key.startswith("events"):
            s3.path(f"reproduced/{key}").parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(finished.path(key), s3.path(f"reproduced/{key}"))
    with open_run(f"s3://{BUCKET}/reproduced") as run:
        assert plan(run, read_history(run), None, None).settings.run.uri == f"s3://{BUCKET}/reproduced-again"
        found = held(run, finished)
    assert found.partings == []
    assert found.num[0, "answers"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--into", "{run}"], "lies in the run that is to be reproduced"),
        (["--into", "{run}/again"], "lies in the run that is to be reproduced"),
        (["--into", "{run}/.."], "or is around it"),
        (["--iterations", "3"], "--iterations 3: expected 1 to 2"),
        (["--iterations", "0"], "--iterations 0: expected 1 to 2"),
        (["--tolerance", "-1"], "--tolerance -1.0: expected a number, 0 or above"),
        (["--tolerance", "nan"], "--tolerance nan: expected a number"),
        (["--set", "training.lr=1"], "only hardware.key=value may be others"),
        (["--set", "hardware.cores=1"], "hardware.cores"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(
    finished: LocalRun, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["reproduce", finished.uri, *(argument.format(run=finished.uri) for argument in arguments)]) == 2
    assert message in said(capsys)
    assert not Path(f"{finished.uri}-again").exists()


def test_no_run_is_an_error_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", str(tmp_path / "nowhere")]) == 2
    assert "no data/manifest.json" in said(capsys)


def test_a_base_model_and_data_that_changed_since_are_refused_by_name(
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
    assert f"DataError: {data} is not what {recorded.uri} began with as its data.train: questions.jsonl" in said(capsys)
    recorded.write_json(layout.RUN, {**record, "base_model": {**record["base_model"], "uri": str(base)}})
    (base / "config.json").write_text((base / "config.json").read_text("utf-8") + " ", "utf-8")
    assert main(["reproduce", recorded.uri]) == 2
    assert f"ModelError: {base} is not what {recorded.uri} began with as its base model: config.json" in said(capsys)


def test_an_address_beside_the_other_is_the_default() -> None:
    assert address_of("/runs/one", None) == "/runs/one-again"
    assert address_of("/runs/one", "/runs/one-more") == "/runs/one-more"
    assert address_of("s3://bucket/runs/one/", None) == "s3://bucket/runs/one-again"
    with pytest.raises(ConfigError, match="a whole bucket; say where the new run shall lie with --into"):
        address_of("s3://bucket", None)


def test_numbers_are_told_apart_with_as_few_digits_as_show_it() -> None:
    assert told_apart(0.68123, 0.68151) == "0.6812 against 0.6815"
    assert told_apart(-1234.512, -1234.518) == "-1234.51 against -1234.52"
    assert told_apart(1.0, 1.0 + 2**-52) == "1.0 against 1.0000000000000002"
