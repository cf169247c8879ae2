from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spin_components.errors import ConfigError, IntegrityError, StorageAccessError
from spin_components.store import remote, transfer
from spin_components.store.base import Staged
from spin_components.store.bucket import Bucket
from spin_components.store.cache import cache_folder
from spin_components.store.digests import FileDigest
from spin_components.store.open import open_run
from spin_components.store.remote import S3Run
from support.loopback import listening, refusal
from support.s3_server import BUCKET, S3Server, free_port

OpenRun = Callable[[], S3Run]


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A prefix for this test on the shared server."""
    return f"runs/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"


@pytest.fixture
def open_it(s3: S3Server, prefix: str) -> Iterator[OpenRun]:
    """Function that opens the test's run again; all are closed at the end."""
    opened: list[S3Run] = []

    def opening() -> S3Run:
        run = open_run(f"s3://{BUCKET}/{prefix}")
        assert isinstance(run, S3Run)
        opened.append(run)
        return run

    yield opening
    for run in opened:
        run.close()


@pytest.fixture
def run(open_it: OpenRun) -> S3Run:
    return open_it()


@pytest.fixture
def stored(s3: S3Server, prefix: str) -> Path:
    """The folder in which the server keeps the run's objects."""
    return s3.path(prefix)


def files_below(folder: Path) -> dict[str, bytes]:
    """Contents of all files below a folder, by relative path."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def stage(run: S3Run, key: str, **files: bytes) -> Staged:
    """Write a folder; `__` in a name is a `/`."""
    with run.staged(key) as staged:
        for name, content in files.items():
            path = staged.path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return staged


@pytest.mark.parametrize("form", ["s3://{run}", "s3://{run}/", "S3://{run}//"])
@pytest.mark.usefixtures("s3")
def test_the_address_of_a_run_is_normalized(form: str) -> None:
    with open_run(form.format(run="bucket/a/b")) as run:
        assert run.uri == "s3://bucket/a/b"


def test_opening_a_run_sends_no_request(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with open_run("s3://bucket/run") as run:
        assert run.uri_of("a/b") == "s3://bucket/run/a/b"


def test_without_keys_a_run_cannot_be_opened(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StorageAccessError, match="AWS_SECRET_ACCESS_KEY is set but AWS_ACCESS_KEY_ID is not"):
        open_run("s3://bucket/run")


def test_keys_and_addresses_are_inverse(run: S3Run) -> None:
    for key in ("run.json", "iterations/0/epochs/1/policy", "ü b+%#?.json"):
        assert run.key_of(run.uri_of(key)) == key


@pytest.mark.parametrize("elsewhere", ["{run}2/run.json", "{run}", "s3://other/a", "hf://org/name", "/a/b"])
def test_an_address_outside_the_run_has_no_key(run: S3Run, elsewhere: str) -> None:
    assert run.key_of(elsewhere.format(run=run.uri)) is None


def test_an_address_with_dots_is_refused(run: S3Run) -> None:
    with pytest.raises(ConfigError, match=r"object storage has no '\.' and '\.\.'"):
        run.key_of(f"{run.uri}/../other/run.json")


def test_json_round_trips(run: S3Run, stored: Path) -> None:
    run.write_json("a/b.json", {"ü": [1, 1.5, None, True, "\u2028"]})
    assert run.read_json("a/b.json") == {"ü": [1, 1.5, None, True, "\u2028"]}
    run.write_json("a/b.json", {"again": 1})
    assert (run.read_json("a/b.json"), list(files_below(stored))) == ({"again": 1}, ["a/b.json"])


def test_json_that_is_missing_or_damaged_is_named(run: S3Run) -> None:
    with pytest.raises(IntegrityError, match=rf"{run.uri}/a\.json is missing; the step that writes it has not fini"):
        run.read_json("a.json")
    run.write("a.json", b'{"cut": ')
    with pytest.raises(IntegrityError, match=rf"{run.uri}/a\.json is not JSON"):
        run.read_json("a.json")


def test_listing_returns_sorted_files_at_the_depth_of_the_pattern(run: S3Run) -> None:
    for key in ("a/2/x.json", "a/10/x.json", "a/x.json", "a/1/y.json", "ab/1/x.json", "a/1/deep/x.json"):
        run.write_json(key, {})
    assert run.list("a", "*/x.json") == ["a/10/x.json", "a/2/x.json"]
    assert run.list("a", "*.json") == ["a/x.json"]
    assert run.list("", "*/x.json") == ["a/x.json"]
    assert run.list("absent", "*") == []
    assert (run.exists("a/x.json"), run.exists("a"), run.exists("a/x")) == (True, False, False)


def test_a_write_is_invisible_until_it_ends(run: S3Run, stored: Path) -> None:
    with run.staged("a/b") as staged:
        staged.path.write_bytes(b"half")
        assert not run.exists("a/b")
        staged.path.write_bytes(b"whole")
    assert files_below(stored) == {"a/b": b"whole"}
    assert staged.outputs == {"a/b": FileDigest(num_bytes=5, sha256=hashlib.sha256(b"whole").hexdigest())}


def test_a_failed_write_keeps_only_the_old_content(run: S3Run, stored: Path) -> None:
    stage(run, "policy", weights=b"old")
    with pytest.raises(RuntimeError, match="on the way"), run.staged("policy") as staged:
        staged.path.mkdir()
        (staged.path / "weights").write_bytes(b"new, ha")
        raise RuntimeError("on the way")
    with pytest.raises(IntegrityError, match="nothing was written for"), run.staged("policy"):
        pass
    assert files_below(stored) == {"policy/weights": b"old"}
    assert list(run.scratch.iterdir()) == []


def test_a_folder_replaces_the_previous_one_completely(run: S3Run, stored: Path) -> None:
    stage(run, "policy", a=b"1", old=b"2", deep__old=b"3")
    run.write("policy2/x", b"of another folder")
    staged = stage(run, "policy", a=b"4", deep__new=b"")
    assert files_below(stored) == {"policy/a": b"4", "policy/deep/new": b"", "policy2/x": b"of another folder"}
    assert {key: digest.num_bytes for key, digest in staged.outputs.items()} == {"policy/a": 1, "policy/deep/new": 0}


def test_files_written_here_are_not_downloaded(open_it: OpenRun, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = stage(open_it(), "policy", a=b"abc", deep__b=b"x")
    monkeypatch.setenv("S3_ENDPOINT", f"http://127.0.0.1:{free_port()}")  # the storage is unreachable from now on
    folder = open_it().fetch(staged.outputs, what="the policy")
    assert ((folder / "policy/a").read_bytes(), (folder / "policy/deep/b").read_bytes()) == (b"abc", b"x")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Function that empties the cache, as on another machine."""
    return lambda: monkeypatch.setenv("SPIN_CACHE_DIR", str(tmp_path / "another cache"))


def test_files_with_the_same_content_are_all_fetched(open_it: OpenRun, elsewhere: Callable[[], None]) -> None:
    staged = stage(open_it(), "policy", a=b"same", b=b"same", c=b"")
    elsewhere()
    folder = open_it().fetch(staged.outputs, what="the policy")
    assert [(folder / "policy" / name).read_bytes() for name in "abc"] == [b"same", b"same", b""]


def test_the_new_content_of_a_key_is_fetched(open_it: OpenRun, elsewhere: Callable[[], None]) -> None:
    first = stage(open_it(), "save", x=b"first")
    run = open_it()
    assert (run.fetch(first.outputs, what="x") / "save/x").read_bytes() == b"first"
    second = stage(run, "save", x=b"second")
    assert (run.fetch(second.outputs, what="x") / "save/x").read_bytes() == b"second"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, "is missing, expected 3 bytes"),
        (lambda path: path.write_bytes(b"abd"), "has SHA-256 a52d159f262b…, expected ba7816bf8f01…"),  # FIPS 180-2
    ],
    ids=["missing", "altered"],
)
def test_the_error_for_damage_says_what_to_do(
    open_it: OpenRun, stored: Path, elsewhere: Callable[[], None], damage: Callable[[Path], object], says: str
) -> None:
    run = open_it()
    staged = stage(run, "policy", a=b"abc", b=b"x")
    damage(stored / "policy/a")
    elsewhere()
    with pytest.raises(
        IntegrityError, match=rf"^{run.uri}/policy/a {says}\. the policy cannot be used; delete "
    ) as error:
        open_it().fetch(staged.outputs, what="the policy", made_by="m.json")
    assert str(error.value).endswith(f"delete {run.uri}/m.json to have its step run again")
    assert not list(cache_folder().rglob("*.part"))


def test_an_object_of_another_size_is_damage(open_it: OpenRun, elsewhere: Callable[[], None]) -> None:
    run = open_it()
    staged = stage(run, "policy", a=b"abc")
    run.write("policy/a", b"ab")
    elsewhere()
    with pytest.raises(
        IntegrityError, match=rf"{run.uri}/policy/a has 2 bytes, expected 3\. x cannot be used; restore"
    ):
        open_it().fetch(staged.outputs, what="x")


def test_deleting_returns_the_freed_bytes_and_keeps_similar_keys(run: S3Run, stored: Path) -> None:
    stage(run, "policy", a=b"12345", deep__b=b"678")
    run.write("policy2", b"12")
    run.write("one", b"12")
    assert [run.delete(key) for key in ("policy", "one", "one", "nothing/here")] == [8, 2, 0, 0]
    assert files_below(stored) == {"policy2": b"12"}


def test_sweeping_removes_only_leftovers_of_dead_writers(run: S3Run, stored: Path, prefix: str) -> None:
    run.write("kept", b"x")
    bucket = Bucket(BUCKET)
    weights = "iterations/0/epochs/0/policy/model.safetensors"
    upload = bucket.begin_upload(f"{prefix}/{weights}")
    bucket.put_part(f"{prefix}/{weights}", upload, 1, b"half")
    others = [f"{prefix}/another/{weights}", f"{prefix}/notes/a.bin", f"{prefix}2/{weights}"]
    inside = "iterations/0/epochs/0/policy/another"
    run.write(f"{inside}/lease.json", b"{}")
    others.append(f"{prefix}/{inside}/model.safetensors")
    uploads = {key: bucket.begin_upload(key) for key in others}
    run.write(".probe-mine", b"x")
    run.write(f".probe-{'0' * 32}", b"x")
    run.scratch.mkdir(parents=True)
    (run.scratch / ".policy.12345678.part").mkdir()
    (run.scratch / ".policy.12345678.part" / "weights").write_bytes(b"half")
    (run.scratch / "kept").write_bytes(b"x")
    (run.scratch / ".kept.part").write_bytes(b"x")
    run.sweep()
    assert sorted(bucket.uploads(prefix)) == sorted(uploads.items())
    for key, other in uploads.items():
        bucket.abort_upload(key, other)
    assert sorted(files_below(stored)) == [".probe-mine", f"{inside}/lease.json", "kept"]
    assert sorted(files_below(run.scratch)) == [".kept.part", "kept"]


def test_a_probe_leaves_no_object(run: S3Run, stored: Path) -> None:
    run.probe()
    assert not stored.exists() or files_below(stored) == {}


@pytest.mark.parametrize("harm", ["nobody", "refused", "altered"])
def test_a_failing_probe_is_an_early_error(
    open_it: OpenRun, s3: S3Server, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    says = {"nobody": "check that the storage runs", "refused": "AccessDenied", "altered": "other bytes than were writ"}
    answer = {"refused": refusal(403, "AccessDenied"), "altered": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"}
    script = lambda request: answer.get(harm) if request.startswith("GET") else None  # noqa: E731
    with listening(script, s3.port) as server:
        monkeypatch.setenv("S3_ENDPOINT", server.endpoint if harm in answer else f"http://127.0.0.1:{free_port()}")
        with pytest.raises(StorageAccessError, match=says[harm]):
            open_it().probe()


def test_long_transfers_report_their_progress(run: S3Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_QUIET_BYTES", 100)
    monkeypatch.setattr(transfer, "PART_BYTES", 100)
    reports: list[tuple[str, int, int]] = []
    run.on_progress = lambda what, done, total: reports.append((what, done, total))
    stage(run, "policy", a=b"x" * 250, b=b"y" * 50)
    assert {(what, total) for what, _, total in reports} == {("storing policy", 300)}
    assert [done for _, done, _ in reports] == sorted(done for _, done, _ in reports)
    assert (reports[-1][1], len(reports)) == (300, 4)  # three parts and a small file
    reports.clear()
    stage(run, "small", a=b"x" * 100)
    assert reports == []
