from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3_server import BUCKET, S3Server
from spin_components.errors import ConfigError
from spin_components.store.cache import FileCache, View, cache_folder, cache_limit
from spin_components.store.digests import FileDigest
from spin_components.store.run import open_run
from unit.store.loopback import listening


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", limit_bytes=100)


@pytest.fixture
def view(cache: FileCache) -> Iterator[View]:
    view = cache.view()
    yield view
    view.close()


def added(cache: FileCache, content: bytes, used_at: float = 0.0) -> FileDigest:
    """Cache a file, last used at some time."""
    path, digest = cache.free_path(), FileDigest(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    path.write_bytes(content)
    os.utime(path, (used_at, used_at))
    cache.add(path, digest)
    return digest


def blobs(folder: Path) -> list[Path]:
    """Every cached file."""
    return sorted(path for path in (folder / "cache" / "files").rglob("*") if path.is_file())


def test_the_folder_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPIN_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/somewhere/.cache/spin-pipelines")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/spin-pipelines")
    monkeypatch.setenv("SPIN_CACHE_DIR", "relative")
    assert cache_folder() == Path.cwd() / "relative"


@pytest.mark.parametrize(("text", "num_bytes"), [("", 50 << 30), ("0", 0), ("0.5", 1 << 29), ("1e3", 1000 << 30)])
def test_the_limit_is_a_number_of_gib(monkeypatch: pytest.MonkeyPatch, text: str, num_bytes: int) -> None:
    monkeypatch.setenv("SPIN_CACHE_GIB", text)
    assert cache_limit() == num_bytes


@pytest.mark.parametrize("text", ["much", "-1", "nan", "5GiB", "inf"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SPIN_CACHE_GIB", text)
    with pytest.raises(ConfigError, match=f"SPIN_CACHE_GIB = '{text}': expected a number of GiB, 0 or more"):
        cache_limit()


def test_a_file_is_known_by_its_content(cache: FileCache, tmp_path: Path) -> None:
    digest = added(cache, b"abc")
    assert cache.has(digest)
    assert not cache.has(FileDigest(num_bytes=3, sha256="0" * 64))
    assert added(cache, b"abc") == digest
    (blob,) = blobs(tmp_path)
    assert (blob.name, blob.stat().st_mode & 0o777) == (digest.sha256, 0o444)


@pytest.mark.parametrize("damage", [b"abd", b"ab", b""])
def test_a_file_that_was_altered_is_not_given_and_is_gone(
    cache: FileCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    digest = added(cache, b"abc")
    (blob,) = blobs(tmp_path)
    blob.chmod(0o644)
    blob.write_bytes(damage)
    assert not cache.has(digest)
    assert "was altered; it is fetched again" in caplog.text
    assert blobs(tmp_path) == []


def test_the_least_recently_used_files_beyond_the_limit_go(cache: FileCache) -> None:
    first, second, third = (added(cache, bytes([number]) * 40, used_at=number) for number in (1, 2, 3))
    assert cache.has(first)  # used now
    cache.trim()  # 120 bytes, of which 100 may stay
    assert [cache.has(digest) for digest in (first, second, third)] == [True, False, True]
    cache.trim()
    assert [cache.has(digest) for digest in (first, third)] == [True, True]


def test_a_file_larger_than_the_limit_lives_as_long_as_its_view(cache: FileCache, view: View) -> None:
    digest = added(cache, b"x" * 101)
    assert cache.link(digest, view.place("policy/weights", digest))
    cache.trim()
    assert not cache.has(digest)
    assert (view.folder / "policy" / "weights").read_bytes() == b"x" * 101
    assert not cache.link(digest, view.place("again", digest))


def test_a_view_knows_what_it_lacks(cache: FileCache, view: View) -> None:
    old, new = added(cache, b"old"), added(cache, b"new")
    assert view.lacking({"a": old}) == {"a": old}
    assert cache.link(old, view.place("a", old))
    assert view.lacking({"a": old}) == {}
    assert view.lacking({"a": new, "b": old}) == {"a": new, "b": old}
    assert cache.link(new, view.place("a", new))
    assert (view.folder / "a").read_bytes() == b"new"
    view.forget("a")
    assert view.lacking({"a": new}) == {"a": new}


def test_a_view_is_gone_when_it_is_closed(cache: FileCache) -> None:
    digest, view = added(cache, b"abc"), cache.view()
    cache.link(digest, view.place("a/b", digest))
    view.close()
    assert not view.folder.exists()
    assert cache.has(digest)


HOLD_A_VIEW = """
import sys; from pathlib import Path; from spin_components.store.cache import FileCache
view = FileCache(Path(sys.argv[1]), 100).view()
print(view.folder, flush=True)
sys.stdin.read()
"""


def test_a_view_is_removed_when_its_process_has_died_and_not_before(cache: FileCache, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_A_VIEW, str(tmp_path / "cache")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        cache.trim()
        assert folder.is_dir()
        process.kill()
        process.wait()
    mine = cache.view()
    cache.trim()
    assert (folder.exists(), mine.folder.exists()) == (False, True)
    mine.close()


def test_what_a_download_left_whose_process_has_died_is_removed(cache: FileCache, tmp_path: Path) -> None:
    path = cache.free_path()
    path.write_bytes(b"half of the weights")
    long_ago = 1e9  # 2001
    os.utime(path, (long_ago, long_ago))
    cache.trim()
    assert blobs(tmp_path) == []


def test_what_a_tag_stands_for_is_remembered(cache: FileCache, tmp_path: Path) -> None:
    digest = FileDigest(num_bytes=3, sha256="0" * 64)
    assert cache.recall("tag") is None
    cache.remember("tag", digest)
    assert FileCache(tmp_path / "cache", 0).recall("tag") == digest
    (tmp_path / "cache" / "tags" / "tag").write_text('{"num_bytes": ')
    assert cache.recall("tag") is None


FETCH = """
import sys; from pathlib import Path
from spin_components.store.digests import FileDigest
from spin_components.store.run import open_run
files = {key: FileDigest(num_bytes=int(size), sha256=sha256) for key, size, sha256 in
         (line.split() for line in sys.stdin.read().splitlines())}
with open_run(sys.argv[1]) as run:
    for _ in range(20):
        with open_run(sys.argv[1]) as other:
            folder = other.fetch(files, what="them")
            assert all((folder / key).stat().st_size == digest.num_bytes for key, digest in files.items())
"""


def stored(s3: S3Server, prefix: str, contents: dict[str, bytes]) -> dict[str, FileDigest]:
    """Objects of a run, put there by another machine."""
    s3.path(prefix).mkdir(exist_ok=True)
    digests = {}
    for key, content in contents.items():
        s3.path(f"{prefix}/{key}").write_bytes(content)
        digests[key] = FileDigest(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    return digests


def test_what_was_fetched_is_not_fetched_again(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    files = stored(s3, "cached", {"a": b"abc", "b": b"x"})
    with listening(lambda request: None, s3.port) as server:
        monkeypatch.setenv("S3_ENDPOINT", server.endpoint)
        for _ in range(3):
            with open_run(f"s3://{BUCKET}/cached") as run:
                assert (run.fetch(files, what="them") / "a").read_bytes() == b"abc"
                assert (run.fetch(files, what="them") / "b").read_bytes() == b"x"
        assert server.count("GET") == 2
    with open_run(f"s3://{BUCKET}/cached") as run:  # with nobody to ask
        assert (run.fetch(files, what="them") / "a").read_bytes() == b"abc"


def test_what_was_altered_in_the_cache_is_fetched_again(s3: S3Server, tmp_path: Path) -> None:
    files = stored(s3, "damaged-cache", {"a": b"abc"})
    with open_run(f"s3://{BUCKET}/damaged-cache") as run:
        run.fetch(files, what="it")
    (blob,) = blobs(tmp_path)
    blob.chmod(0o644)
    blob.write_bytes(b"abd")
    with open_run(f"s3://{BUCKET}/damaged-cache") as run:
        assert (run.fetch(files, what="it") / "a").read_bytes() == b"abc"


def test_what_does_not_fit_the_cache_is_fetched_all_the_same(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIN_CACHE_GIB", "0")
    files = stored(s3, "uncached", {"a": b"abc", "b": b"x"})
    with open_run(f"s3://{BUCKET}/uncached") as run:
        folder = run.fetch(files, what="them")
        assert blobs(tmp_path) == []
        assert ((folder / "a").read_bytes(), (folder / "b").read_bytes()) == (b"abc", b"x")
    assert not folder.exists()


def test_processes_share_a_cache_that_is_too_small_for_them(s3: S3Server, tmp_path: Path) -> None:
    contents = {f"{number}": bytes([number]) * 60_000 for number in range(4)}
    files = stored(s3, "shared", contents)
    lines = "\n".join(f"{key} {digest.num_bytes} {digest.sha256}" for key, digest in files.items())
    environment = {**os.environ, "SPIN_CACHE_GIB": str(100_000 / 2**30)}  # room for one file
    command = [sys.executable, "-c", FETCH, f"s3://{BUCKET}/shared"]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    failures = [process.communicate(lines)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], failures
    assert list((tmp_path / "cache" / "views").iterdir()) == []
