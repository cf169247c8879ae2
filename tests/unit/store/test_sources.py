from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spin_components.errors import ConfigError, DataError, IntegrityError, StorageAccessError
from spin_components.store.digests import FileDigest
from spin_components.store.sources import Sources
from support.loopback import listening
from support.s3_server import BUCKET, S3Server

SUFFIXES = r"expected one of \.jsonl, \.json, \.jsonl\.gz, \.json\.gz, \.parquet, \.arrow"

Put = Callable[..., str]


@pytest.fixture
def sources() -> Iterator[Sources]:
    with Sources() as sources:
        yield sources


@pytest.fixture(params=["local", "s3"])
def put(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> Put:
    """Function that writes files to a folder or below a prefix and returns its address."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    folder = tmp_path / "data" if request.param == "local" else s3.path(f"sources/{name}")
    address = str(folder) if request.param == "local" else f"s3://{BUCKET}/sources/{name}"

    def putting(**files: bytes) -> str:
        for key, content in files.items():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return address

    return putting


def test_a_single_file_has_its_own_address(put: Put, sources: Sources) -> None:
    address = put(**{"a.jsonl": b"abc", "b.jsonl": b"x"}) + "/a.jsonl"
    source = sources.open_data(address, what="data.train")
    assert (source.uri, source.names, source.is_file) == (address, ("a.jsonl",), True)
    assert {uri: path.read_bytes() for uri, path in source.files.items()} == {address: b"abc"}
    assert source.digests == {"a.jsonl": FileDigest(num_bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())}


def test_all_data_files_of_a_folder_are_opened_sorted(put: Put, sources: Sources) -> None:
    names = ["b/x.jsonl.gz", "10.jsonl", "9.json", "a.parquet", "b/c/y.json.gz"]
    left = ["README.md", ".hidden.jsonl", ".folder/x.jsonl", "b/.z.json", "x.csv", "jsonl", "x.jsonl.bak", "y.gz"]
    address = put(**{name: name.encode() for name in names + left})
    source = sources.open_data(address, what="data.train")
    assert source.names == ("10.jsonl", "9.json", "a.parquet", "b/c/y.json.gz", "b/x.jsonl.gz")
    assert (source.uri, source.is_file) == (address, False)
    assert [(uri, path.read_bytes().decode()) for uri, path in source.files.items()] == [
        (f"{address}/{name}", name) for name in source.names
    ]


def test_names_are_relative_to_the_prefix(put: Put, sources: Sources) -> None:
    address = put(**{"data/a.jsonl": b"1", "data2/a.jsonl": b"2", "data.jsonl": b"3"})
    assert sources.open_data(f"{address}/data", what="data.train").names == ("a.jsonl",)


def test_a_hidden_folder_can_be_named(put: Put, sources: Sources) -> None:
    address = put(**{".private/a.jsonl": b"1"})
    assert sources.open_data(f"{address}/.private", what="data.train").names == ("a.jsonl",)


def test_a_file_in_a_hidden_folder_can_be_named(put: Put, sources: Sources) -> None:
    address = put(**{".private/a.jsonl": b"1"})
    assert sources.open_data(f"{address}/.private/a.jsonl", what="data.train").names == ("a.jsonl",)


@pytest.mark.parametrize("below", ["", "/absent", "/absent.jsonl", "/notes.txt"])
def test_the_error_without_data_names_the_setting(put: Put, sources: Sources, below: str) -> None:
    address = put(**{"notes.txt": b"x"}) + below
    with pytest.raises(
        DataError, match=r"data\.train = .*(does not exist, expected|contains no data|has the suffix '\.txt')"
    ):
        sources.open_data(address, what="data.train")


def test_the_error_for_an_unknown_suffix_lists_the_known_ones(tmp_path: Path, sources: Sources) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=rf"has the suffix '\.csv', {SUFFIXES}; convert or rename the file"):
        sources.open_data(str(tmp_path / "a.csv"), what="data.train")
    with pytest.raises(DataError, match=rf"contains no data file; {SUFFIXES} in it"):
        sources.open_data(str(tmp_path), what="data.train")
    with pytest.raises(DataError, match=r"does not exist, .*; check the path and the mounts"):
        sources.open_data(str(tmp_path / "absent.jsonl"), what="data.train")


CLONE = ["README.md", ".gitattributes", "dataset_infos.json", "data/train-00000-of-00002.parquet"]
CLONE += ["data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"]
TRAIN = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet")
TEST = ("data/test-00000-of-00001.parquet",)


def test_training_data_leaves_the_held_out_splits_of_a_folder_out(put: Put, sources: Sources) -> None:
    address = put(**{name: name.encode() for name in CLONE})
    source = sources.open_data(address, what="data.train")
    assert (source.names, source.left_out, source.uri) == (TRAIN, TEST, address)


def test_validation_data_is_the_held_out_split_of_a_folder(put: Put, sources: Sources) -> None:
    address = put(**{name: name.encode() for name in CLONE})
    assert sources.open_data(address, what="data.validation").names == TEST


def test_a_split_is_named_after_the_address(put: Put, sources: Sources) -> None:
    address = put(**{name: name.encode() for name in CLONE})
    source = sources.open_data(f"{address}#test", what="data.train")
    assert (source.names, source.uri, source.split) == (TEST, f"{address}#test", "test")
    assert list(source.files) == [f"{address}/{TEST[0]}"]
    with pytest.raises(DataError, match=r"no file there is of the split 'dev', expected one of test, train; name anot"):
        sources.open_data(f"{address}#dev", what="data.train")
    with pytest.raises(DataError, match="names a split of a file"):
        sources.open_data(f"{address}/{TEST[0]}#test", what="data.train")


def test_a_folder_of_held_out_data_alone_is_not_trained_on_unasked(put: Put, sources: Sources) -> None:
    address = put(**{"test.jsonl": b"1"})
    with pytest.raises(DataError, match=r"data.train = .* has only files of the split test, .*'.*#test'"):
        sources.open_data(address, what="data.train")
    assert sources.open_data(address, what="data.validation").names == ("test.jsonl",)
    assert sources.open_data(f"{address}/test.jsonl", what="data.train").names == ("test.jsonl",)


def test_a_run_that_began_with_every_file_goes_on_with_them(put: Put, sources: Sources) -> None:
    address = put(**{name: name.encode() for name in CLONE})
    began = (*TEST, *TRAIN)
    assert sources.open_data(address, what="data.train", recorded=began).names == began
    assert sources.open_data(address, what="data.train", recorded=TRAIN).names == TRAIN


def test_a_number_sign_in_a_folders_name_is_no_split(tmp_path: Path, sources: Sources) -> None:
    (tmp_path / "a#test").mkdir()
    (tmp_path / "a#test" / "x.jsonl").touch()
    assert sources.open_data(str(tmp_path / "a#test"), what="data.train").names == ("x.jsonl",)


def test_a_saved_data_set_is_its_arrow_files(put: Put, sources: Sources) -> None:
    names = ["dataset_dict.json"]
    for split in ("train", "test"):
        names += [f"{split}/{name}" for name in ("data-00000-of-00001.arrow", "state.json", "dataset_info.json")]
    address = put(**dict.fromkeys([*names, "train/cache-0123456789abcdef.arrow"], b"x"))
    assert sources.open_data(address, what="data.train").names == ("train/data-00000-of-00001.arrow",)
    assert sources.open_data(f"{address}/test", what="data.train").names == ("data-00000-of-00001.arrow",)


def test_arrow_beside_other_data_is_not_read_twice(put: Put, sources: Sources) -> None:
    address = put(**{"a.parquet": b"1", "cache/a.arrow": b"1"})
    assert sources.open_data(address, what="data.train").names == ("a.parquet",)


@pytest.mark.parametrize("uri", ["gs://bucket/a.jsonl", "https://host/a.jsonl", "", "s3://", "hf://"])
def test_other_addresses_are_refused(sources: Sources, uri: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.train"):
        sources.open_data(uri, what="data.train")


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_named(sources: Sources) -> None:
    with pytest.raises(StorageAccessError, match=r"s3://absent/.*the bucket does not exist"):
        sources.open_data("s3://absent/data", what="data.train")


def test_a_model_is_all_visible_files(put: Put, sources: Sources) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights", "deep/x.txt": b"", ".git/config": b"", ".x": b""}
    address = put(**files)
    source = sources.open_model(address, what="model.base")
    assert source.names == ("config.json", "deep/x.txt", "model.safetensors")
    assert (source.folder / "model.safetensors").read_bytes() == b"weights"
    assert source.uri == address


def test_a_missing_model_has_no_files(put: Put, sources: Sources) -> None:
    assert sources.open_model(put() + "/absent", what="model.base").names == ()


def test_a_model_with_known_digests_is_verified(put: Put, sources: Sources) -> None:
    address = put(**{"config.json": b"{}", "model.safetensors": b"abc", "new.txt": b"does not matter"})
    files = {
        name: digest for name, digest in sources.open_model(address, what="x").digests.items() if name != "new.txt"
    }
    folder = sources.fetch_model(address, files, what="the base model")
    assert (folder / "config.json").read_bytes() == b"{}"
    put(**{"model.safetensors": b"abcd"})
    remedy = r"the base model cannot be used; restore the model that the run started with, or start another run"
    with pytest.raises(IntegrityError, match=rf"^{address}/model\.safetensors has 4 bytes, expected 3\. {remedy}"):
        sources.fetch_model(address, files, what="the base model")
    files["absent.json"] = FileDigest(num_bytes=7, sha256="0" * 64)
    with pytest.raises(IntegrityError, match=rf"^{address}/absent\.json is missing, expected 7 bytes\. {remedy}"):
        sources.fetch_model(address, files, what="the base model")


def test_downloaded_files_are_not_downloaded_again(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = s3.path("sources/cached/a.jsonl")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"first")
    with listening(lambda request: None, s3.port) as server:
        monkeypatch.setenv("S3_ENDPOINT", server.endpoint)

        def read() -> bytes:
            with Sources() as sources:
                source = sources.open_data(f"s3://{BUCKET}/sources/cached", what="data.train")
                return (source.folder / "a.jsonl").read_bytes()

        first_gets = []
        for content in (b"first", b"first", b"another", b"another"):
            path.write_bytes(content)
            assert read() == content
            first_gets.append(server.count(f"GET /{BUCKET}/sources/cached/a.jsonl"))
    assert first_gets == [1, 1, 2, 2]


def test_closing_removes_downloaded_files(s3: S3Server) -> None:
    s3.path("sources/gone").mkdir(parents=True)
    s3.path("sources/gone/a.jsonl").write_bytes(b"x")
    with Sources() as sources:
        folder = sources.open_data(f"s3://{BUCKET}/sources/gone", what="data.train").folder
        assert folder.is_dir()
    assert not folder.exists()
    sources.close()
