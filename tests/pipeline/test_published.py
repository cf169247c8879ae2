"""Export, fork and gc of finished runs, through the command line in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import digest_of, digest_tree
from spin_components.store.lease_holder import LeaseHolder
from spin_components.store.local import LocalRun
from spin_components.store.manifests import read_manifest
from spin_components.store.open import open_run
from spin_pipeline.cli import main
from support import bounds
from support.playing import play, play_anywhere
from support.s3_server import BUCKET, S3Server

MakeSettings = Callable[..., Settings]


@pytest.fixture
def run(finished: LocalRun, tmp_path: Path) -> LocalRun:
    """A copy of the finished run at another address; its manifests have the old address."""
    shutil.copytree(finished.root, tmp_path / "copy")
    return LocalRun(tmp_path / "copy")


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """The printed text in one line."""
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_the_best_iteration_is_exported_as_a_folder_that_transformers_loads(
    finished: LocalRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", finished.uri, str(tmp_path / "model")]) == 0
    best = finished.read_json(layout.BEST)
    assert f"wrote iteration {best['iteration']} to {tmp_path / 'model'}" in printed(capsys)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    trained = AutoModelForCausalLM.from_pretrained(best["uri"])
    for name, tensor in trained.state_dict().items():
        assert torch.equal(exported.state_dict()[name], tensor)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_tensors="pt", return_dict=True)
    assert exported.generate(**ids, max_new_tokens=2).shape[0] == 1


def test_the_model_card_contains_the_lineage(finished: LocalRun, tmp_path: Path) -> None:
    assert main(["export", finished.uri, str(tmp_path / "model"), "--iteration", "1"]) == 0
    card = (tmp_path / "model/README.md").read_text("utf-8")
    record = finished.read_json(layout.RUN)
    losses = [finished.read_json(layout.BASE_VALIDATION)["facts"]["val_loss"]]
    losses += [finished.read_json(layout.checkpoint(t))["facts"]["val_loss"] for t in (0, 1)]
    for text in (
        *(f"{loss:.4f}" for loss in losses),
        record["base_model"]["uri"],
        record["settings"]["data"]["train"],
        finished.uri,
        "lr = 0.001",
        f"torch {torch.__version__}",
    ):
        assert text in card


def test_a_model_is_exported_to_object_storage(finished: LocalRun, s3: S3Server) -> None:
    assert main(["export", finished.uri, f"s3://{BUCKET}/models/mine"]) == 0
    AutoModelForCausalLM.from_pretrained(s3.path("models/mine"))


def test_an_export_does_not_overwrite_files(
    finished: LocalRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine").write_text("x")
    assert main(["export", finished.uri, str(tmp_path / "model")]) == 2
    assert "has 1 files already; choose another DEST" in printed(capsys)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("which", "code", "message"),
    [
        ("7", 2, "iteration 7 of"),
        ("last", 2, "expected a number, best, or warm-up"),
        ("0", 1, "the weights of iteration 0 are no longer at"),
    ],
)
def test_an_iteration_that_cannot_be_exported_is_refused(
    finished: LocalRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str, code: int, message: str
) -> None:
    assert main(["export", finished.uri, str(tmp_path / "model"), "--iteration", which]) == code
    assert message in printed(capsys)
    assert not (tmp_path / "model").exists()


def test_an_altered_policy_is_not_exported(
    make_settings: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = play(make_settings())
    weights = run.path(layout.epoch(0, 0) + "/policy/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["export", run.uri, str(tmp_path / "model")]) == 1
    text = printed(capsys)
    assert f"IntegrityError: {weights} has SHA-256" in text
    assert "epochs/0/manifest.json to have its step run again" in text


def test_a_fork_starts_from_an_iterations_policy_and_the_runs_settings(
    finished: LocalRun, make_settings: MakeSettings, tmp_path: Path
) -> None:
    from spin_pipeline.config import check_settings
    from spin_pipeline.runs.published import forked_values

    overrides = ["training.lr=5e-4", "spin.max_iterations=1"]
    forked = check_settings(forked_values(finished, "1"), overrides, str(tmp_path / "forked"), source="the test")
    assert forked.training.lr == 5e-4
    assert forked.generation.max_new_tokens == 8
    assert forked.model.forked_from == f"{finished.uri}, iteration 1"
    run = play(forked)
    # the base of the fork is the other run's last policy, so its loss on the same held-out answers is the same
    facts = finished.read_json(layout.checkpoint(1))["facts"]
    policy = LocalRun(Path(facts["checkpoint_uri"]))
    a_token = bounds.of_logprob(bounds.model_in(policy.root), num_tokens=1)
    base_loss = read_manifest(run, layout.BASE_VALIDATION).facts["val_loss"]
    assert base_loss == pytest.approx(facts["val_loss"], abs=a_token)
    assert forked.model.sha256 == digest_of(digest_tree(policy.root))


def test_a_base_model_with_another_digest_is_refused(
    finished: LocalRun, make_settings: MakeSettings, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from spin_components.errors import ModelError

    with pytest.raises(ModelError, match=r"has the digest .*, model\.sha256 says 000000000000…"):
        play_anywhere(make_settings(model={"base": str(tiny_llama), "sha256": "0" * 64}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iteration", "9"], "iteration 9 of"),
        ([], "name its address with --run-uri"),
    ],
)
def test_an_invalid_fork_is_refused(
    finished: LocalRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    target = ["--run-uri", str(tmp_path / "forked")] if arguments else []
    assert main(["run", "--fork-from", finished.uri, *arguments, *target]) == 2
    assert message in printed(capsys)


def test_gc_finds_nothing_in_a_finished_run(finished: LocalRun, capsys: pytest.CaptureFixture[str]) -> None:
    before = finished.sizes("")
    assert main(["gc", finished.uri]) == 0
    assert "freed 0.0 MiB in 0 files, and 0 unfinished writes" in printed(capsys)
    assert before.keys() <= finished.sizes("").keys()


def test_gc_removes_only_files_that_no_manifest_references(run: LocalRun, capsys: pytest.CaptureFixture[str]) -> None:
    before = run.sizes("")
    garbage = {
        "iterations/0/epochs/0/partial/3/policy/model.safetensors": 2 << 20,
        "iterations/2/generations/00000.parquet": 5,
        "data/train-00007.parquet": 7,
        "iterations/1/epochs/0/.policy.12345678.part/model.safetensors": 9,
    }
    mine = {"notes.txt": 3, "eval/results.json": 4}
    for key, size in {**garbage, **mine}.items():
        run.path(key).parent.mkdir(parents=True, exist_ok=True)
        run.path(key).write_bytes(b"x" * size)
    assert main(["gc", run.uri, "--dry-run"]) == 0
    text = printed(capsys)
    assert "would free 2.0 MiB in 3 files, and 1 unfinished writes" in text
    assert all(run.path(key).exists() for key in garbage)
    assert main(["gc", run.uri]) == 0
    assert "freed 2.0 MiB in 3 files, and 1 unfinished writes" in printed(capsys)
    assert run.sizes("").keys() | {".lock"} == before.keys() | mine.keys() | {".lock"}
    assert not list(run.root.rglob("*.part"))


def test_gc_keeps_the_save_of_an_unfinished_epoch(run: LocalRun) -> None:
    manifest = run.read_json(layout.epoch_manifest(1, 0))
    key = "iterations/2/epochs/0/partial/1/trainer/state.json"
    run.write(key, b"{}")
    run.write_json(
        "iterations/2/epochs/0/partial.json", {**manifest, "outputs": {key: {"num_bytes": 2, "sha256": "0" * 64}}}
    )
    assert main(["gc", run.uri]) == 0
    assert run.exists(key)


def test_gc_does_not_touch_a_run_that_is_in_use_or_damaged(run: LocalRun, capsys: pytest.CaptureFixture[str]) -> None:
    lease = LeaseHolder(run, "somebody else", take_over=True)
    assert main(["gc", run.uri]) == 2
    assert "another runner is at work" in printed(capsys)
    lease.close()
    lease.release()
    before = run.sizes("")
    run.path(layout.epoch_manifest(0, 0)).write_text("{")
    assert main(["gc", run.uri]) == 1
    assert "manifest.json is not JSON" in printed(capsys)
    added = run.sizes("").keys() - before.keys()
    assert before.keys() <= run.sizes("").keys()
    assert {key.partition("/")[0] for key in added} <= {layout.LEASES}  # gc is an attempt of its own


def test_gc_aborts_unfinished_uploads(finished: LocalRun, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    from spin_components.store.bucket import Bucket

    for key, size in finished.sizes("").items():
        if size and not key.startswith("events"):
            s3.path(f"gc/{key}").parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(finished.path(key), s3.path(f"gc/{key}"))
    bucket = Bucket(BUCKET)
    upload = bucket.begin_upload("gc/iterations/0/epochs/0/policy/model.safetensors")
    assert bucket.uploads("gc/") == [("gc/iterations/0/epochs/0/policy/model.safetensors", upload)]
    assert main(["gc", f"s3://{BUCKET}/gc"]) == 0
    assert "and 1 unfinished writes" in printed(capsys)
    assert bucket.uploads("gc/") == []


@pytest.mark.parametrize("command", ["export", "gc", "status"])
def test_a_missing_run_is_an_error(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "model")] if command == "export" else []
    assert main([command, str(tmp_path / "nowhere"), *arguments]) == 2
    assert "no run at" in printed(capsys)
    assert not open_run(str(tmp_path / "nowhere")).sizes("")
