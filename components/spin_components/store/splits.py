"""Files of a data set by split, which is read from their names as the Hugging Face hub does.

    train-00000-of-00002.parquet   data/test.jsonl   validation/part-1.jsonl.gz   train_sft-00000-of-00001.parquet

The split is a word of the file's name, else of its folder's; a file without such a word belongs to the training data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from spin_components.errors import DataError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "heldout"),
}
"""Words in names that stand for each split."""

METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""Files beside the data that are none of it."""

_WORDS = {word: split for split, words in SPLITS.items() for word in words}
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}\.[.\w]+")


def split_of(name: str) -> str:
    """The split in a file's name, or else in its nearest folder's: train, validation or test; empty for none.

    Of several in one name, what is held out counts.
    """
    for part in reversed(name.split("/")):
        found = {_WORDS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in _WORDS}
        if found:
            return next(split for split in ("test", "validation", "train") if split in found)
    return ""


def without_metadata(names: Sequence[str]) -> list[str]:
    """Data files; those of Arrow, which `save_to_disk` writes, only where there is nothing else to read."""
    kept = [name for name in names if name.rpartition("/")[2] not in METADATA]
    rest = [name for name in kept if not name.endswith(".arrow")]
    return rest or [name for name in kept if not name.rpartition("/")[2].startswith(("cache-", "indices"))]


def choose_files(names: Sequence[str], split: str, *, what: str, address: str) -> list[str]:
    """The files of a folder that a setting means.

    Args:
        names: data files in the folder.
        split: split that the address names, `test` or `train_sft`; empty for the setting's own.
        what: name of the setting; `data.validation` means what is held out, any other the training data.
        address: of the folder, for the error.

    Raises:
        DataError: no file is of the split, or all are of others.
    """
    if split:
        chosen = [name for name in names if split.lower() in _names_of(name)]
        if not chosen:
            found = sorted({_exact(name) or split_of(name) for name in names} - {""})
            raise DataError(
                f"{what} = '{address}#{split}': no file there is of the split {split!r}, expected one of "
                f"{', '.join(found) or 'none: no name has a split in it'}; name another, or the file itself"
            )
        return chosen
    held_out = {each: [name for name in names if split_of(name) == each] for each in ("validation", "test")}
    if what.endswith("data.validation"):
        return held_out["validation"] or held_out["test"] or list(names)
    chosen = [name for name in names if name not in held_out["validation"] and name not in held_out["test"]]
    if names and not chosen:
        splits = " and ".join(each for each, found in held_out.items() if found)
        raise DataError(
            f"{what} = {address!r} has only files of the split {splits}, e.g. {names[0]}, expected training data; if "
            f"they are to be trained on, name the split: '{address}#{splits.split(' ')[0]}'"
        )
    return chosen


def _exact(name: str) -> str:
    """The split that a shard's name gives, `train_sft` of `train_sft-00000-of-00003.parquet`."""
    match = _SHARD.fullmatch(name.rpartition("/")[2])
    return match[1].lower() if match and split_of(match[1]) else ""


def _names_of(name: str) -> set[str]:
    """Every word by which a file's split may be asked for."""
    split = split_of(name)
    exact = _exact(name)
    words = set(SPLITS.get(split, ()))
    return {*words, split, exact, *(part.partition(".")[0].lower() for part in name.split("/"))} - {""}
