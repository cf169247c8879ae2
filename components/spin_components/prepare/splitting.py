"""Splits rendered records into training and validation prompts, so that no prompt is in both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from spin_components.algorithm.batching import derive_seed, permutation
from spin_components.algorithm.schedules import resolve_count
from spin_components.data.shards import Prompt
from spin_components.errors import DataError
from spin_components.prepare.rendering import RenderedSet
from spin_components.settings.run import DataSettings
from spin_components.settings.settings import Settings

REMOVED_REPEATS = "num_removed_repeats"
"""Fact of the data manifest that older runs lack, which kept training records that repeat an earlier one."""


@dataclass(frozen=True, slots=True)
class SplitSet:
    """Training and validation prompts.

    Attributes:
        train: to train on.
        validation: held out.
        num_train_duplicates: training records that repeat an earlier one, prompt and answer.
        num_validation_duplicates: the same among validation records.
        num_shared: training records whose prompt is a validation prompt too.
        num_removed: how many of those were left out of training.
        num_repeats: training records left out because they repeat an earlier one.
    """

    train: list[Prompt]
    validation: list[Prompt]
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
        for name, number, prompts in (
            ("training", self.num_train_duplicates, self.train),
            ("validation", self.num_validation_duplicates, self.validation),
        ):
            if number:
                found.append(
                    f"{number} of {len(prompts)} {name} records are duplicates: the same prompt and answer as an "
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


def split_records(rendered: RenderedSet, settings: Settings) -> SplitSet:
    """Split by the files given or by the seed, then cut to `max_*_records`.

    With `data.deduplicate`, the records of one prompt stay on one side of a seeded split, and those of a validation
    file's prompts are left out of training. So are training records that repeat an earlier one, unless it is "across".

    Raises:
        DataError: one of the two would be empty.
    """
    data = settings.data
    train, validation = rendered.prompts["train"], rendered.prompts.get("validation")
    is_given = validation is not None
    if validation is None:
        held_out = _held_out(train, settings)
        validation = [prompt for i, prompt in enumerate(train) if i in held_out]
        train = [prompt for i, prompt in enumerate(train) if i not in held_out]
    validation = validation[: data.max_validation_records or None]
    kept = _without_shared(train, validation) if data.deduplicate and is_given else train
    if train and not kept:
        raise DataError(
            f"every one of {len(train)} training records is identical to a validation record: data.train = "
            f"{data.train!r} holds nothing that data.validation = {data.validation!r} does not; leave data.validation "
            f"empty, so that data.validation_size = {data.validation_size} holds records out of data.train, or give "
            "other validation data; data.deduplicate = false trains on them nevertheless"
        )
    distinct = _distinct(kept) if data.deduplicate is True else kept
    used = distinct[: data.max_train_records or None]
    _check_some(used, validation, rendered.num_records, data)
    prompts = {_prompt(each) for each in validation}
    num_removed = len(train) - len(kept)
    num_shared = sum(_prompt(each) in prompts for each in used)
    return SplitSet(
        train=used,
        validation=validation,
        num_train_duplicates=_repeated(used),
        num_validation_duplicates=_repeated(validation),
        num_shared=num_shared + num_removed,
        num_removed=num_removed,
        num_repeats=len(kept) - len(distinct),
    )


def _held_out(records: Sequence[Prompt], settings: Settings) -> set[int]:
    """Places of the records that a seeded permutation puts first, all records of a prompt together.

    Where that would hold none out, only equal records stay together, and last none.
    """
    data = settings.data
    num = resolve_count(data.validation_size, len(records))
    order = [int(i) for i in permutation(len(records), derive_seed(settings.run.seed, "split"))]
    for key in (_prompt, _record) if data.deduplicate else ():
        held_out = _whole_groups(records, order, num, key)
        if held_out:
            return held_out
    return set(order[:num])


def _whole_groups(
    records: Sequence[Prompt], order: Sequence[int], num: int, key: Callable[[Prompt], Hashable]
) -> set[int]:
    """Up to `num` places in that order, groups of one key whole: one that does not fit any more is passed over."""
    keys = [key(record) for record in records]
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, each in enumerate(keys):
        groups[each].append(i)
    held_out: set[int] = set()
    for i in order:
        if len(held_out) == num:
            break
        group = groups.pop(keys[i], [])
        if len(held_out) + len(group) <= num:
            held_out.update(group)
    return held_out


def _without_shared(train: list[Prompt], validation: Sequence[Prompt]) -> list[Prompt]:
    """Training records whose prompt is no validation prompt; where there are none, those that are not there whole."""
    kept: list[Prompt] = []
    for key in (_prompt, _record):
        seen = {key(each) for each in validation}
        kept = kept or [each for each in train if key(each) not in seen]
    return kept


def _prompt(record: Prompt) -> Hashable:
    return tuple(record.prompt_ids)


def _record(record: Prompt) -> Hashable:
    return tuple(record.prompt_ids), tuple(record.actual_ids)


def _distinct(records: Sequence[Prompt]) -> list[Prompt]:
    """The first of each record, in order."""
    first: dict[Hashable, Prompt] = {}
    for each in records:
        first.setdefault(_record(each), each)
    return list(first.values())


def _repeated(records: Sequence[Prompt]) -> int:
    return len(records) - len({_record(each) for each in records})


def _check_some(train: Sequence[Prompt], validation: Sequence[Prompt], num_records: int, data: DataSettings) -> None:
    for name, prompts in (("training", train), ("validation", validation)):
        if not prompts:
            raise DataError(
                f"no {name} records are left of {num_records}; give more data, or change "
                f"data.validation_size = {data.validation_size!r}"
            )
