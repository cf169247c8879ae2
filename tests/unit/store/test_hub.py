from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from spin_components.errors import ConfigError, DataError, StorageAccessError, StorageError
from spin_components.store.addresses import parse_hub
from spin_components.store.hub import open_snapshot
from spin_components.store.sources import Sources
from support.loopback import Script, listening

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub client, without network access."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def sources() -> Iterator[Sources]:
    with Sources() as sources:
        yield sources


def cached(hub_cache: Path, repository: str, files: dict[str, bytes], *, revision: str = "main") -> Path:
    """Create a snapshot in the hub client's layout, with links to blobs; returns its folder."""
    root = hub_cache / repository.replace("/", "--")
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(COMMIT)
    (root / "blobs").mkdir(exist_ok=True)
    for number, (name, content) in enumerate(files.items()):
        blob, link = root / "blobs" / f"{number:040x}", root / "snapshots" / COMMIT / name
        blob.write_bytes(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return root / "snapshots" / COMMIT


def test_a_model_in_the_cache_is_opened_without_network(hub_cache: Path, sources: Sources) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights", "deep/x.json": b"[]", ".gitattributes": b""}
    folder = cached(hub_cache, "models/org/name", files)
    source = sources.open_model("hf://org/name", what="model.base")
    assert source.folder == folder
    assert source.uri == f"hf://org/name@{COMMIT}"
    assert source.names == ("config.json", "deep/x.json", "model.safetensors")
    assert source.digests["model.safetensors"].num_bytes == 7


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_revision_is_resolved_to_its_commit(hub_cache: Path, revision: str) -> None:
    folder = cached(hub_cache, "models/org/name", {"config.json": b"{}"}, revision="v1")
    snapshot = open_snapshot(parse_hub(f"hf://org/name@{revision}", what="x"), kind="model", what="x")
    assert snapshot == (f"hf://org/name@{COMMIT}", folder)


def test_a_model_is_verified_by_its_resolved_address(hub_cache: Path, sources: Sources) -> None:
    cached(hub_cache, "models/org/name", {"config.json": b"{}"})
    source = sources.open_model("hf://org/name", what="model.base")
    assert sources.fetch_model(source.uri, source.digests, what="the base model") == source.folder


def test_training_data_is_every_data_file_of_a_repository_or_folder_but_the_tests(
    hub_cache: Path, sources: Sources
) -> None:
    files = {"README.md": b"", "data/b.parquet": b"b", "data/a.jsonl": b"a", "test/a.jsonl": b"t"}
    cached(hub_cache, "datasets/org/name", files)
    everything = sources.open_data("hf://datasets/org/name", what="data.train")
    assert (everything.names, everything.left_out) == (("data/a.jsonl", "data/b.parquet"), ("test/a.jsonl",))
    part = sources.open_data("hf://datasets/org/name/data", what="data.train")
    assert [(uri, path.read_bytes()) for uri, path in part.files.items()] == [
        (f"hf://datasets/org/name@{COMMIT}/data/a.jsonl", b"a"),
        (f"hf://datasets/org/name@{COMMIT}/data/b.parquet", b"b"),
    ]


def test_a_data_set_may_be_one_file(hub_cache: Path, sources: Sources) -> None:
    cached(hub_cache, "datasets/org/name", {"data/a.jsonl": b"a", "data/a.jsonl.gz": b"z"})
    source = sources.open_data("hf://datasets/org/name/data/a.jsonl", what="data.train")
    assert [(uri, path.read_bytes()) for uri, path in source.files.items()] == [
        (f"hf://datasets/org/name@{COMMIT}/data/a.jsonl", b"a")
    ]


def test_a_data_set_without_data_files_is_refused(hub_cache: Path, sources: Sources) -> None:
    cached(hub_cache, "datasets/org/name", {"README.md": b""})
    with pytest.raises(DataError, match=r"data\.train = 'hf://datasets/org/name' contains no data file"):
        sources.open_data("hf://datasets/org/name", what="data.train")


def test_the_error_without_network_says_how_to_download(hub_cache: Path, sources: Sources) -> None:
    cached(hub_cache, "models/org/name", {"config.json": b"{}"})
    for uri in ("hf://org/other", "hf://org/name@v2"):
        with pytest.raises(StorageError, match=r"^model\.base = 'hf://org/") as caught:
            sources.open_model(uri, what="model.base")
        assert type(caught.value) is StorageError
        assert "is not in the hub's cache and the hub cannot be reached" in str(caught.value)
        assert "`hf download`), then copy the cache (HF_HOME) here, or set model.base to the folder" in str(
            caught.value
        )


@pytest.mark.usefixtures("hub_cache")
def test_an_address_of_the_other_kind_is_refused(sources: Sources) -> None:
    with pytest.raises(ConfigError, match=r"data\.train = 'hf://org/name@main' is a model; expected hf://datasets/org"):
        sources.open_data("hf://org/name", what="data.train")
    with pytest.raises(ConfigError, match=r"'hf://datasets/org/name@main' is a dataset; expected hf://org/name"):
        sources.open_model("hf://datasets/org/name", what="model.base")


@pytest.mark.parametrize("name", ["org/na--me", "org/name.", "org/..", f"org/{'n' * 97}"])
@pytest.mark.usefixtures("hub_cache")
def test_an_invalid_repository_name_is_refused(sources: Sources, name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.base"):
        sources.open_model(f"hf://{name}", what="model.base")


OPEN = """
from spin_components.errors import SpinError
from spin_components.store.sources import Sources
try:
    Sources().open_model("hf://org/name@v1", what="model.base")
except SpinError as error:
    print(type(error).__name__, error)
"""


def opened(script: Script, tmp_path: Path) -> str:
    """Return the error that another process gets from a hub with scripted responses."""
    with listening(script) as server:
        variables = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_ENDPOINT": server.endpoint}
        environment = {**os.environ, **variables, "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", OPEN]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert server.requests
    assert done.returncode == 0, done.stderr
    return done.stdout


def hub_error(status: int, code: str, message: str = "no") -> bytes:
    head = f"HTTP/1.1 {status} No\r\nX-Error-Code: {code}\r\nX-Error-Message: {message}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode()


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (hub_error(404, "RepoNotFound"), StorageAccessError, "the model does not exist or is private; .* HF_TOKEN"),
        (
            hub_error(401, ""),
            StorageAccessError,
            "the hub refuses HF_TOKEN; renew or unset it",
        ),
        (hub_error(404, "RevisionNotFound"), StorageAccessError, "the revision 'v1' does not exist"),
        (hub_error(403, "GatedRepo"), StorageAccessError, "is gated; accept its terms on the hub and set HF_TOKEN"),
        (hub_error(500, ""), StorageError, "is not in the hub's cache and the hub cannot be reached"),
        (b"", StorageError, "is not in the hub's cache and the hub cannot be reached"),
    ],
    ids=["absent", "token", "revision", "gated", "down", "reset"],
)
def test_errors_of_the_hub_are_explained(tmp_path: Path, answer: bytes, kind: type[Exception], says: str) -> None:
    message = opened(lambda request: answer, tmp_path)
    assert re.match(rf"{kind.__name__} model\.base = 'hf://org/name@v1'.*{says}", message), message
