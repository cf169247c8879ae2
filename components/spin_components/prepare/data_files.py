"""The files of a run's data: the spool that records are rendered to, and the shards that are written from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray

from spin_components.data.shard_writer import ShardWriter
from spin_components.data.shards import PROMPT_SCHEMA
from spin_components.prepare.rendered_parts import RenderedParts
from spin_components.prepare.spool import RecordSpool
from spin_components.runtime.step import Step
from spin_components.store.base import RunStore


@contextmanager
def open_spool(run: RunStore, seed: int, parts: RenderedParts) -> Iterator[RecordSpool]:
    """A spool whose last part is in the run's folder for temporary files, removed at the end of the block."""
    folder = run.scratch_folder()
    folder.mkdir(parents=True)
    try:
        yield RecordSpool(folder / "records.arrow", seed, parts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_files(step: Step, spool: RecordSpool, files: Mapping[str, NDArray[np.int64]]) -> None:
    """Write the outputs of the step, all in one pass over the spool.

    Args:
        step: the running `prepare`.
        spool: the rendered records.
        files: numbers of the records, ascending, by the key of the file; no record is in two of them.
    """
    file_of = np.full(len(spool), -1, dtype=np.int32)  # by record: the index of its file, -1 for none
    for index, numbers in enumerate(files.values()):
        file_of[numbers] = index
    with ExitStack() as stack:
        writers = [
            stack.enter_context(ShardWriter(stack.enter_context(step.write(key)), PROMPT_SCHEMA))
            for key in reversed(list(files))  # so that they are stored in the order of the files
        ][::-1]
        start = 0
        for batch in spool.batches():
            part = file_of[start : start + batch.num_rows]
            for index in np.unique(part[part >= 0]):
                writers[index].write(batch.take(np.flatnonzero(part == index)))
            start += batch.num_rows
