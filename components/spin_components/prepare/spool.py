"""Rendered records in a temporary file, with what the split needs of each of them in memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from spin_components.data.shards import PROMPT_SCHEMA, Prompt
from spin_components.prepare import rendered_parts
from spin_components.prepare.rendered_parts import RenderedParts

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class RecordKeys:
    """Which records are the same, by number; those of the training data come first.

    Attributes:
        prompts: number of the first record with the same prompt, (N,) int64.
        records: number of the first record with the same prompt and answer, (N,) int64.
        points: seeded hash of each record's prompt, (N,) uint64, evenly distributed.
        num_train: number of records of the training data.
        is_given: whether there is validation data.
    """

    prompts: NDArray[np.int64]
    records: NDArray[np.int64]
    points: NDArray[np.uint64]
    num_train: int
    is_given: bool


class RecordSpool:
    """Rendered records in files; in memory, 44 bytes of each record.

    Args:
        path: of a local file for the records that are in no part, which is written anew.
        seed: of the hash of prompts.
        parts: where records are stored as they come; None to keep all of them in the local file.
    """

    def __init__(self, path: Path, seed: int, parts: RenderedParts | None = None) -> None:
        self._path, self._parts = path, parts
        self._key = f"prompt:{seed}".encode()
        self._prompts, self._records = bytearray(), bytearray()  # digests
        self._prompt_tokens, self._answer_tokens, self._highest = array("i"), array("i"), array("i")
        self._begin_file()

    def _begin_file(self) -> None:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_stream(self._path, PROMPT_SCHEMA, options=options)
        self._file_tokens = 0

    def __len__(self) -> int:
        return len(self._highest)

    def add(self, rows: Sequence[Prompt]) -> None:
        """Append records; a record's index is its number."""
        prompts = [array("i", row.prompt_ids).tobytes() for row in rows]
        answers = [array("i", row.actual_ids).tobytes() for row in rows]
        for row, prompt, answer in zip(rows, prompts, answers, strict=True):
            self._note(prompt, answer, max(max(row.prompt_ids), max(row.actual_ids, default=0)))
        columns = [
            pa.array([row.index for row in rows], pa.int64()),
            _lists(prompts),
            _lists(answers),
            pa.array([row.actual_ended for row in rows], pa.bool_()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=PROMPT_SCHEMA))

    def _note(self, prompt: bytes, answer: bytes, highest: int) -> None:
        """Keep what the split needs of a record, whose token ids are given as bytes of int32."""
        digest = hashlib.blake2b(prompt, digest_size=_DIGEST_BYTES, key=self._key).digest()
        self._prompts += digest
        self._records += hashlib.blake2b(digest + answer, digest_size=_DIGEST_BYTES).digest()
        self._prompt_tokens.append(len(prompt) // 4)
        self._answer_tokens.append(len(answer) // 4)
        self._highest.append(highest)
        self._file_tokens += (len(prompt) + len(answer)) // 4

    def restore(self) -> dict[str, Any] | None:
        """Begin with the records of an interrupted attempt; returns what `end_part` got with the last of them."""
        state = self._parts.restore() if self._parts else None
        for batch in self._stored_batches() if state else ():
            columns = [(column.offsets.to_numpy(), column.values.to_numpy()) for column in batch.columns[1:3]]
            for number in range(batch.num_rows):
                prompt, answer = (ids[offsets[number] : offsets[number + 1]] for offsets, ids in columns)
                highest = max(int(prompt.max()), int(answer.max(initial=0)))
                self._note(prompt.tobytes(), answer.tobytes(), highest)
        self._file_tokens = 0
        return state

    @property
    def is_part(self) -> bool:
        """Whether as many records came since the last part as make one."""
        return self._parts is not None and self._file_tokens >= rendered_parts.PART_TOKENS

    def end_part(self, state: Mapping[str, Any]) -> None:
        """Store the records since the last part as a part, with what is needed to go on after it, as JSON."""
        self._writer.close()
        assert self._parts is not None
        self._parts.add(self._path, state)
        self._begin_file()

    def close(self) -> None:
        """End the file, which can be read from then on."""
        self._writer.close()

    def keys(self, num_train: int, *, is_given: bool) -> RecordKeys:
        """Which records are the same; see `RecordKeys`. To be called once: the digests are dropped."""
        prompts, points = _first_equal(_digests(self._prompts)), _digests(self._prompts)[:, 0].copy()
        self._prompts = bytearray()
        records = _first_equal(_digests(self._records))
        self._records = bytearray()
        return RecordKeys(prompts, records, points, num_train, is_given)

    def lengths(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Tokens of prompt and answer of records."""
        prompts, answers = _numbers(self._prompt_tokens), _numbers(self._answer_tokens)
        for start in range(0, len(numbers), 2**16):
            part = numbers[start : start + 2**16]
            yield from zip(prompts[part].tolist(), answers[part].tolist(), strict=True)

    def highest(self, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        """The highest token id of each of these records."""
        return _numbers(self._highest)[numbers]

    def record(self, number: int) -> Prompt:
        """One record, for which the file is read up to it."""
        start = 0
        for batch in self.batches():
            if number < start + batch.num_rows:
                return Prompt(**batch.slice(number - start, 1).to_pylist()[0])
            start += batch.num_rows
        raise IndexError(number)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All records, in order."""
        yield from self._stored_batches()
        yield from _batches_of(self._path)

    def _stored_batches(self) -> Iterator[pa.RecordBatch]:
        for path in self._parts.paths() if self._parts else ():
            yield from _batches_of(path)


def _batches_of(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
        yield from reader


def _lists(ids: Sequence[bytes]) -> pa.ListArray:
    """A column of token ids, each given as the bytes of an array of int32."""
    offsets = np.zeros(len(ids) + 1, dtype=np.int32)
    np.cumsum([len(each) // 4 for each in ids], out=offsets[1:])
    values = np.frombuffer(b"".join(ids), dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _numbers(values: array[int]) -> NDArray[np.int32]:
    return np.frombuffer(values, dtype=np.int32) if values else np.zeros(0, dtype=np.int32)


def _digests(digests: bytearray) -> NDArray[np.uint64]:
    """Digests as two numbers each, (N, 2), the same on every machine."""
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


def _first_equal(digests: NDArray[Any]) -> NDArray[np.int64]:
    """For each digest the index of the first one that equals it."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal ones stay in order
    ordered = digests[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[is_first][np.cumsum(is_first) - 1] if len(order) else order
    return first
