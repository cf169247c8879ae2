"""Splits rendered records into training and validation prompts, so that no prompt is in both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin_components.algorithm.batching import derive_seed, permuted
from spin_components.algorithm.schedules import resolve_count
from spin_components.errors import DataError
from spin_components.prepare.spool import RecordKeys
from spin_components.settings.run import DataSettings
from spin_components.settings.settings import Settings

REMOVED_REPEATS = "num_removed_repeats"
"""Fact of the data manifest that older runs lack, which kept training records that repeat an earlier one."""


@dataclass(frozen=True, slots=True)
class SplitSet:
    """Numbers of the training and validation records.

    Attributes:
        train: to train on, ascending.
        validation: held out, ascending.
        num_train_duplicates: training records that repeat an earlier one, prompt and answer.
        num_validation_duplicates: the same among validation records.
        num_shared: training records whose prompt is a validation prompt too.
        num_removed: how many of those were left out of training.
        num_repeats: training records left out because they repeat an earlier one.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    num_train_duplicates: int
    num_validation_duplicates: int
    num_shared: int
    num_removed: int
    num_repeats: int = 0

    def facts(self) -> dict[str, int]:
        """Facts of the data manifest."""
        return {
            "num_train_duplicates": self.num_train_duplicates,
            "num_validation_duplicates": self.num_validation_duplicates,
            "num_shared_prompts": self.num_shared - self.num_removed,
            "num_removed_duplicates": self.num_removed,
            REMOVED_REPEATS: self.num_repeats,
        }

    def warnings(self) -> list[str]:
        """One sentence for each kind of duplicates."""
        found = []
        for name, number, records in (
            ("training", self.num_train_duplicates, self.train),
            ("validation", self.num_validation_duplicates, self.validation),
        ):
            if number:
                found.append(
                    f"{number} of {len(records)} {name} records are duplicates: the same prompt and answer as an "
                    "earlier record; they count as often as they are there"
                )
        if self.num_repeats:
            found.append(
                f"{self.num_repeats} training records are duplicates: the same prompt and answer as an earlier record; "
                'they were left out of training; data.deduplicate = "across" or false keeps them'
            )
        if self.num_removed:
            found.append(
                f"{self.num_removed} training records have the same prompt as a validation record and were left out "
                "of training; data.deduplicate = false keeps them"
            )
        if left := self.num_shared - self.num_removed:
            found.append(
                f"{left} of {len(self.train)} training records have the same prompt as a validation record, so that "
                "validation measures what was trained on; set data.deduplicate to true, or give other validation data"
            )
        return found


def split_records(keys: RecordKeys, settings: Settings) -> SplitSet:
    """Split by the files given or by the seed, then cut to `max_*_records`.

    With `data.deduplicate`, the records of one prompt stay on one side of a seeded split, and those of a validation
    file's prompts are left out of training. So are training records that repeat an earlier one, unless it is "across".

    Raises:
        DataError: one of the two would be empty.
    """
    data, num_records = settings.data, len(keys.prompts)
    train = np.arange(keys.num_train)
    if keys.is_given:
        validation = np.arange(keys.num_train, num_records)
    else:
        is_held_out = _held_out(keys, settings)
        train, validation = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    validation = validation[: data.max_validation_records or None]
    kept = _without_shared(keys, train, validation) if data.deduplicate and keys.is_given else train
    if len(train) and not len(kept):
        raise DataError(
            f"every one of {len(train)} training records is identical to a validation record: data.train = "
            f"{data.train!r} holds nothing that data.validation = {data.validation!r} does not; leave data.validation "
            f"empty, so that data.validation_size = {data.validation_size} holds records out of data.train, or give "
            "other validation data; data.deduplicate = false trains on them nevertheless"
        )
    distinct = _distinct(keys, kept) if data.deduplicate is True else kept
    used = distinct[: data.max_train_records or None]
    _check_some(used, validation, num_records, data)
    num_removed = len(train) - len(kept)
    num_shared = int(np.isin(keys.prompts[used], keys.prompts[validation]).sum())
    return SplitSet(
        train=used,
        validation=validation,
        num_train_duplicates=len(used) - len(_distinct(keys, used)),
        num_validation_duplicates=len(validation) - len(_distinct(keys, validation)),
        num_shared=num_shared + num_removed,
        num_removed=num_removed,
        num_repeats=len(kept) - len(distinct),
    )


def split_inputs(data: DataSettings) -> dict[str, str]:
    """How records are chosen for validation, as an input of the run where earlier releases would choose others.

    A fraction is the default's case of a hash. So a run that an earlier release began goes on with its split.
    """
    if data.validation or not data.splits_by_hash:
        return {}
    return {"data.split": "auto" if isinstance(data.validation_size, float) else "hash"}


def _held_out(keys: RecordKeys, settings: Settings) -> NDArray[np.bool_]:
    """Which of the training data's records are held out, (N,)."""
    data = settings.data
    if data.splits_by_hash and data.validation_size > 0 and len(np.unique(keys.prompts)) > 1:
        return _held_out_by_hash(keys, data.validation_size)
    return _held_out_by_order(keys, settings)


def _held_out_by_hash(keys: RecordKeys, size: int | float) -> NDArray[np.bool_]:
    """The records whose prompt has a hash below a limit; of at least two prompts, neither none nor all.

    A fraction is the limit itself, whatever the other records are. For a number, prompts are taken whole from the
    lowest hash on.
    """
    if isinstance(size, int):
        return _whole_groups(keys.prompts, np.argsort(keys.points, kind="stable"), size)
    limit = min(int(size * 2**64), 2**64 - 1)
    lowest, highest = int(keys.points.min()), int(keys.points.max())
    return keys.points < np.uint64(min(max(limit, lowest + 1), highest))


def _held_out_by_order(keys: RecordKeys, settings: Settings) -> NDArray[np.bool_]:
    """The records that a seeded permutation puts first, all records of a prompt together.

    Where that would hold none out, only equal records stay together, and last none.
    """
    data, num_records = settings.data, keys.num_train
    num = resolve_count(data.validation_size, num_records)
    order = permuted(num_records, derive_seed(settings.run.seed, "split"))
    for groups in (keys.prompts, keys.records) if data.deduplicate else ():
        is_held_out = _whole_groups(groups, order, num)
        if is_held_out.any():
            return is_held_out
    is_held_out = np.zeros(num_records, dtype=bool)
    is_held_out[order[:num]] = True
    return is_held_out


def _whole_groups(groups: NDArray[np.int64], order: NDArray[np.int64], num: int) -> NDArray[np.bool_]:
    """Up to `num` records in that order, groups whole: one that does not fit any more is passed over."""
    by_group = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=len(groups))  # by a group's first record
    starts = np.cumsum(sizes) - sizes
    chosen = np.zeros(len(groups), dtype=bool)
    is_seen = np.zeros(len(groups), dtype=bool)
    num_chosen = 0
    for group in groups[order]:
        if num_chosen == num:
            break
        if not is_seen[group] and num_chosen + sizes[group] <= num:
            chosen[by_group[starts[group] : starts[group] + sizes[group]]] = True
            num_chosen += int(sizes[group])
        is_seen[group] = True
    return chosen


def _without_shared(keys: RecordKeys, train: NDArray[np.int64], validation: NDArray[np.int64]) -> NDArray[np.int64]:
    """Training records whose prompt is no validation prompt; where there are none, those that are not there whole."""
    kept = train[~np.isin(keys.prompts[train], keys.prompts[validation])]
    return kept if len(kept) else train[~np.isin(keys.records[train], keys.records[validation])]


def _distinct(keys: RecordKeys, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first of each record, in order."""
    return numbers[np.sort(np.unique(keys.records[numbers], return_index=True)[1])]


def _check_some(train: NDArray[np.int64], validation: NDArray[np.int64], num_records: int, data: DataSettings) -> None:
    for name, numbers in (("training", train), ("validation", validation)):
        if not len(numbers):
            raise DataError(
                f"no {name} records are left of {num_records}; give more data, or change "
                f"data.validation_size = {data.validation_size!r}"
            )
