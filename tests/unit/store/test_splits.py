from __future__ import annotations

import pytest

from spin_components.errors import DataError
from spin_components.store.addresses import check_address, split_address
from spin_components.store.splits import choose_files, split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/train_sft-00000-of-00003.parquet", "train"),
        ("training.jsonl", "train"),
        ("test.jsonl.gz", "test"),
        ("x_test2.jsonl", "test"),
        ("eval/part-1.jsonl", "test"),
        ("Dev.json", "validation"),
        ("my-data-valid.jsonl", "validation"),
        ("val/train/a.jsonl", "train"),  # the nearest name tells it
        ("train_test.jsonl", "test"),  # what is held out counts
        ("data.jsonl", ""),
        ("contest.jsonl", ""),
        ("latest/a.jsonl", ""),
        ("devices.jsonl", ""),
    ],
)
def test_a_word_of_the_name_tells_the_split(name: str, split: str) -> None:
    assert split_of(name) == split


def test_a_file_without_a_split_belongs_to_the_training_data() -> None:
    names = ["more.jsonl", "test.jsonl", "train.jsonl"]
    assert choose_files(names, "", what="data.train", address="x") == ["more.jsonl", "train.jsonl"]


def test_validation_data_is_validation_before_test_before_all() -> None:
    def chosen(*names: str) -> list[str]:
        return choose_files(names, "", what="data.validation", address="x")

    assert chosen("dev.jsonl", "test.jsonl", "train.jsonl") == ["dev.jsonl"]
    assert chosen("test.jsonl", "train.jsonl") == ["test.jsonl"]
    assert chosen("a.jsonl", "b.jsonl") == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("split", ["test", "eval", "test_sft"])
def test_a_split_is_asked_for_by_any_of_its_names(split: str) -> None:
    names = ["data/test_sft-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet"]
    assert choose_files(names, split, what="data.train", address="x") == names[:1]


def test_one_of_several_splits_of_a_kind_can_be_named() -> None:
    names = ["data/train_gen-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet"]
    assert choose_files(names, "train_sft", what="data.train", address="x") == names[1:]
    with pytest.raises(DataError, match="'test_sft', expected one of train_gen, train_sft"):
        choose_files(names, "test_sft", what="data.train", address="x")


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("hf://datasets/org/name@main#test", ("hf://datasets/org/name@main", "test")),
        ("s3://bucket/a#b.jsonl", ("s3://bucket/a#b.jsonl", "")),
        ("data", ("data", "")),
        ("#test", ("#test", "")),
    ],
)
def test_a_split_follows_the_address(uri: str, parts: tuple[str, str]) -> None:
    assert split_address(uri) == parts


def test_an_address_with_a_split_is_an_address_of_data() -> None:
    check_address("hf://datasets/org/name#test", what="data.train")
