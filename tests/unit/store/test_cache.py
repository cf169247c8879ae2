from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_components.errors import ConfigError
from spin_components.store.cache import FileCache, View, cache_folder, cache_limit
from spin_components.store.digests import FileDigest
from spin_components.store.open import open_run
from support.loopback import listening
from support.s3_server import BUCKET, S3Server


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", limit_bytes=100)


@pytest.fixture
def view(cache: FileCache) -> Iterator[View]:
    view = cache.view()
    yield view
    view.close()


def added(cache: FileCache, content: bytes, used_at: float = 0.0) -> FileDigest:
    """Add a file to the cache with a time of last use."""
    path, digest = cache.free_path(), FileDigest(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    path.write_bytes(content)
    os.utime(path, (used_at, used_at))
    cache.add(path, digest)
    return digest


def blobs(folder: Path) -> list[Path]:
    """Every cached file."""
    return sorted(path for path in (folder / "cache" / "files").rglob("*") if path.is_file())


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPIN_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/somewhere/.cache/spin-pipelines")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/spin-pipelines")
    monkeypatch.setenv("SPIN_CACHE_DIR", "relative")
    assert cache_folder() == Path.cwd() / "relative"


def test_a_volume_that_is_not_writable_is_replaced_by_the_pods_own_disk_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def deny(*arguments: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")  # the tests run as root, whom nothing denies

    monkeypatch.setattr("spin_components.store.cache.tempfile.TemporaryFile", deny)
    monkeypatch.setenv("SPIN_CACHE_DIR", str(tmp_path / "volume"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "volume" / "huggingface"))
    folder = cache_folder()
    assert folder == Path(tempfile.gettempdir(), f"spin-cache-{os.getuid()}") == cache_folder()
    assert os.environ["HF_HOME"] == str(folder / "huggingface")
    assert len(caplog.messages) == 1
    assert f"is not writable by user {os.getuid()} (Permission denied)" in caplog.text


def test_without_hard_links_a_view_has_copies(
    cache: FileCache, view: View, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(path: Path, target: Path) -> None:
        target.stat()
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")  # as SMB does

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    digest = added(cache, b"weights")
    assert cache.link(digest, tmp_path / "linked")
    assert (tmp_path / "linked").read_bytes() == b"weights"
    assert not cache.link(FileDigest(sha256="0" * 64, num_bytes=1), tmp_path / "other")


@pytest.mark.parametrize(("text", "num_bytes"), [("", 50 << 30), ("0", 0), ("0.5", 1 << 29), ("1e3", 1000 << 30)])
def test_the_limit_is_a_number_of_gib(monkeypatch: pytest.MonkeyPatch, text: str, num_bytes: int) -> None:
    monkeypatch.setenv("SPIN_CACHE_GIB", text)
    assert cache_limit() == num_bytes


@pytest.mark.parametrize("text", ["much", "-1", "nan", "5GiB", "inf"])
def test_a_malformed_limit_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SPIN_CACHE_GIB", text)
    with pytest.raises(ConfigError, match=f"SPIN_CACHE_GIB = '{text}': expected a number of GiB, 0 or more"):
        cache_limit()


def test_a_file_is_identified_by_its_content(cache: FileCache, tmp_path: Path) -> None:
    digest = added(cache, b"abc")
    assert cache.has(digest)
    assert not cache.has(FileDigest(num_bytes=3, sha256="0" * 64))
    assert added(cache, b"abc") == digest
    (blob,) = blobs(tmp_path)
    assert (blob.name, blob.stat().st_mode & 0o777) == (digest.sha256, 0o444)


@pytest.mark.parametrize("damage", [b"abd", b"ab", b""])
def test_an_altered_file_is_not_used_and_is_removed(
    cache: FileCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    digest = added(cache, b"abc")
    (blob,) = blobs(tmp_path)
    blob.chmod(0o644)
    blob.write_bytes(damage)
    assert not cache.has(digest)
    assert "was altered; it is downloaded again" in caplog.text
    assert blobs(tmp_path) == []


def test_the_least_recently_used_files_above_the_limit_are_evicted(cache: FileCache) -> None:
    first, second, third = (added(cache, bytes([number]) * 40, used_at=number) for number in (1, 2, 3))
    assert cache.has(first)  # used now
    cache.trim()  # 120 bytes, of which 100 may stay
    assert [cache.has(digest) for digest in (first, second, third)] == [True, False, True]
    cache.trim()
    assert [cache.has(digest) for digest in (first, third)] == [True, True]


def test_a_file_larger_than_the_limit_is_kept_while_its_view_is_open(cache: FileCache, view: View) -> None:
    digest = added(cache, b"x" * 101)
    assert cache.link(digest, view.link_path("policy/weights", digest))
    cache.trim()
    assert not cache.has(digest)
    assert (view.folder / "policy" / "weights").read_bytes() == b"x" * 101
    assert not cache.link(digest, view.link_path("again", digest))


def test_a_view_lists_missing_files(cache: FileCache, view: View) -> None:
    old, new = added(cache, b"old"), added(cache, b"new")
    assert view.missing({"a": old}) == {"a": old}
    assert cache.link(old, view.link_path("a", old))
    assert view.missing({"a": old}) == {}
    assert view.missing({"a": new, "b": old}) == {"a": new, "b": old}
    assert cache.link(new, view.link_path("a", new))
    assert (view.folder / "a").read_bytes() == b"new"
    view.forget("a")
    assert view.missing({"a": new}) == {"a": new}


def test_a_closed_view_is_removed(cache: FileCache) -> None:
    digest, view = added(cache, b"abc"), cache.view()
    cache.link(digest, view.link_path("a/b", digest))
    view.close()
    assert not view.folder.exists()
    assert cache.has(digest)


HOLD_A_VIEW = """
import sys; from pathlib import Path; from spin_components.store.cache import FileCache
view = FileCache(Path(sys.argv[1]), 100).view()
print(view.folder, flush=True)
sys.stdin.read()
"""


def test_a_view_is_removed_only_once_its_process_has_died(cache: FileCache, tmp_path: Path) -> None:
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


def test_partial_downloads_of_dead_processes_are_removed(cache: FileCache, tmp_path: Path) -> None:
    path = cache.free_path()
    path.write_bytes(b"half of the weights")
    long_ago = 1e9  # 2001
    os.utime(path, (long_ago, long_ago))
    cache.trim()
    assert blobs(tmp_path) == []


def test_digests_of_tags_are_remembered(cache: FileCache, tmp_path: Path) -> None:
    digest = FileDigest(num_bytes=3, sha256="0" * 64)
    assert cache.recall("tag") is None
    cache.remember("tag", digest)
    assert FileCache(tmp_path / "cache", 0).recall("tag") == digest
    (tmp_path / "cache" / "tags" / "tag").write_text('{"num_bytes": ')
    assert cache.recall("tag") is None


FETCH = """
import sys; from pathlib import Path
from spin_components.store.digests import FileDigest
from spin_components.store.open import open_run
files = {key: FileDigest(num_bytes=int(size), sha256=sha256) for key, size, sha256 in
         (line.split() for line in sys.stdin.read().splitlines())}
with open_run(sys.argv[1]) as run:
    for _ in range(20):
        with open_run(sys.argv[1]) as other:
            folder = other.fetch(files, what="them")
            assert all((folder / key).stat().st_size == digest.num_bytes for key, digest in files.items())
"""


def stored(s3: S3Server, prefix: str, contents: dict[str, bytes]) -> dict[str, FileDigest]:
    """Objects of a run, written by another machine."""
    s3.path(prefix).mkdir(exist_ok=True)
    digests = {}
    for key, content in contents.items():
        s3.path(f"{prefix}/{key}").write_bytes(content)
        digests[key] = FileDigest(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    return digests


def test_cached_files_are_not_downloaded_again(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    files = stored(s3, "cached", {"a": b"abc", "b": b"x"})
    with listening(lambda request: None, s3.port) as server:
        monkeypatch.setenv("S3_ENDPOINT", server.endpoint)
        for _ in range(3):
            with open_run(f"s3://{BUCKET}/cached") as run:
                assert (run.fetch(files, what="them") / "a").read_bytes() == b"abc"
                assert (run.fetch(files, what="them") / "b").read_bytes() == b"x"
        assert server.count("GET") == 2
    with open_run(f"s3://{BUCKET}/cached") as run:  # the storage is down
        assert (run.fetch(files, what="them") / "a").read_bytes() == b"abc"


def test_altered_files_in_the_cache_are_downloaded_again(s3: S3Server, tmp_path: Path) -> None:
    files = stored(s3, "damaged-cache", {"a": b"abc"})
    with open_run(f"s3://{BUCKET}/damaged-cache") as run:
        run.fetch(files, what="it")
    (blob,) = blobs(tmp_path)
    blob.chmod(0o644)
    blob.write_bytes(b"abd")
    with open_run(f"s3://{BUCKET}/damaged-cache") as run:
        assert (run.fetch(files, what="it") / "a").read_bytes() == b"abc"


def test_files_larger_than_the_cache_are_downloaded(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIN_CACHE_GIB", "0")
    files = stored(s3, "uncached", {"a": b"abc", "b": b"x"})
    with open_run(f"s3://{BUCKET}/uncached") as run:
        folder = run.fetch(files, what="them")
        assert blobs(tmp_path) == []
        assert ((folder / "a").read_bytes(), (folder / "b").read_bytes()) == (b"abc", b"x")
    assert not folder.exists()


def test_processes_share_a_cache_that_is_too_small(s3: S3Server, tmp_path: Path) -> None:
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
