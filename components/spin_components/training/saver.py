"""Stores an epoch's saves beside training: every rank its own part, in a thread, and the manifest last.

A save is first written to this machine's disk, a file of at most 512 MiB in memory at a time; that is what holds up a
step. A thread then stores the files in the run, while training goes on. The next save begins when all ranks' parts of
the one before are stored and its manifest is written, so that at most one save is on its way, on disk and in no memory.
Until the manifest is there the save before counts, and its files stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spin_components.runtime.step import Step
from spin_components.store import layout
from spin_components.store.manifests import Manifest
from spin_components.store.open import open_run
from spin_components.store.write_right import WriteRight
from spin_components.training.backend import Backend
from spin_components.training.confirmations import Confirmations, KeyStore, Outputs, save_limit_s
from spin_components.training.job import EpochJob
from spin_components.training.saves import Trained, part_of, write_save, write_summary

_LAST_S = 60.0
"""Seconds that a rank which ends with an error waits for others to store their parts of the last save."""


class Saver:
    """Saves of one epoch, on one rank; a context manager.

    Args:
        step: the running step.
        job: the epoch.
        backend: of this rank.
        store: that all ranks share; None for a single rank.
    """

    def __init__(self, step: Step, job: EpochJob, backend: Backend, store: KeyStore | None = None) -> None:
        self._step, self._job, self._backend = step, job, backend
        num_bytes = 6 * sum(path.stat().st_size for path in job.policy.rglob("*.safetensors"))
        limit_s = save_limit_s(num_bytes, job.settings.hardware.save_timeout)
        self._confirmations = Confirmations(store, backend.rank, backend.ranks, limit_s=limit_s, where=job.where)
        self._folder = job.scratch / f"rank-{backend.rank:05d}"
        self._number = 0
        self._pending: Future[None] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._thread = self._open.enter_context(ThreadPoolExecutor(1, thread_name_prefix="save"))
        self._run = self._open.enter_context(open_run(self._step.run.uri))  # transfers of two threads share nothing
        self._run.on_progress = self._step.run.on_progress
        self._run.guard = self._step.run.guard
        if self._backend.ranks > 1:
            right = WriteRight.model_validate(self._confirmations.share("right", self._own_right))
            self._run.guard = lambda: right.check(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._confirmations.shorten(_LAST_S)
        self._open.close()  # after an error too: what is on its way is whole, and worth keeping

    def _own_right(self) -> dict[str, Any]:
        assert self._step.lease is not None, "the first rank holds the lease"
        return self._step.lease.right.model_dump()

    def check(self) -> None:
        """Raise the error of a save that could not be stored."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is valid.

        Raises:
            SpinError: it could not be stored.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def save_partial(self, trained: Trained, done: int) -> None:
        """Save inside an epoch, after `done` of its steps; every rank calls it.

        Once the save is valid, the one before it is deleted.
        """
        self.wait()
        job = self._job
        key = f"{layout.epoch(job.iteration, job.epoch)}/partial/{done}"
        facts = {"done": done, "state": trained.state.model_dump(mode="json"), "key": key}
        write_save(self._step.run, job, self._backend, trained, self._folder)

        def commit(outputs: Outputs) -> None:
            manifest = Manifest(step=f"{job.step} (partial)", inputs=job.inputs, outputs=outputs, facts=facts)
            self._step.commit(layout.partial(job.iteration, job.epoch), manifest)
            self._step.events.write("save", done=done)
            self._delete_others(key)

        self._number += 1
        self._pending = self._thread.submit(self._store, self._number, key, commit)

    def save_epoch(self, trained: Trained, facts: dict[str, Any]) -> None:
        """Publish a finished epoch: weights, trainer state, metrics and rewards, then the manifest.

        Every rank calls it, and returns when the epoch is published.
        """
        self.wait()
        job, run = self._job, self._step.run
        key = layout.epoch(job.iteration, job.epoch)
        if self._backend.ranks > 1:
            if self._backend.rank == 0:
                for part in ("policy", layout.ADAPTER, "trainer"):  # of a try that ended before its manifest
                    run.delete(f"{key}/{part}")
            self._backend.agree(True)
        write_save(run, job, self._backend, trained, self._folder, is_whole=True)

        def commit(outputs: Outputs) -> None:
            outputs = outputs | write_summary(run, job, trained, facts["metrics"])
            state = trained.state.model_dump(mode="json")
            self._step.publish({**facts, "state": state, "policy_uri": run.uri_of(f"{key}/policy")}, outputs=outputs)

        self._number += 1
        self._store(self._number, key, commit)

    def _store(self, number: int, key: str, commit: Callable[[Outputs], None]) -> None:
        """Store what is in this rank's folder below a key, then have the first rank write the manifest."""
        try:
            self._confirmations.confirm(number, lambda: self._store_part(key), commit)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _store_part(self, key: str) -> Outputs:
        rank, ranks = self._backend.rank, self._backend.ranks
        outputs: Outputs = {}
        for path in sorted(self._folder.iterdir()):
            if path.name == "policy" and ranks > 1:  # other ranks write into the same folder
                for file in sorted(each for each in path.rglob("*") if each.is_file()):
                    outputs |= self._store_one(file, f"{key}/policy/{file.relative_to(path).as_posix()}")
            else:
                name = part_of(rank, ranks) if path.name == "trainer" else path.name
                outputs |= self._store_one(path, f"{key}/{name}")
        return outputs

    def _store_one(self, path: Path, key: str) -> Outputs:
        with self._run.staged(key) as staged:
            path.replace(staged.path)
        return staged.outputs

    def _delete_others(self, key: str) -> None:
        """Delete every save inside the epoch but one."""
        run, folder = self._step.run, key.rpartition("/")[0]
        saves = {name.removeprefix(f"{folder}/").partition("/")[0] for name in run.sizes(folder)}
        for other in {f"{folder}/{name}" for name in saves} - {key}:
            run.delete(other)
