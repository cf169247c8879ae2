"""TensorBoard tracker: event files in the run's storage, a folder for each series of each branch."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.local import LocalRun
from spin_components.tracking.tracker import AttemptState, Branch, Point, Series


class TensorBoardTracker:
    """Writes one event file per series and process.

    Each file starts with a restart marker, with which TensorBoard discards that step and later ones of earlier files,
    so a step that is trained again replaces its old values. In a local run the files are written in place; to a bucket
    they are uploaded as a whole at each flush.
    """

    def __init__(self, run: RunStore, branch: Branch) -> None:
        self._run = run
        self._folder = layout.TENSORBOARD if branch == "self-play" else f"{layout.TENSORBOARD}/{branch}"
        self._in_place = isinstance(run, LocalRun)
        self._root = run.scratch if self._in_place else Path(tempfile.mkdtemp(prefix="spin-tensorboard-"))
        self._writers: dict[Series, _Writer] = {}
        self._stored: dict[Path, int] = {}

    def log(self, points: Collection[Point]) -> None:
        for point in points:
            if point.series not in self._writers:
                folder = self._root / self._folder / point.series
                self._writers[point.series] = _Writer(folder, point)
            self._writers[point.series].add(point)

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()
        if not self._in_place:
            for path in (path for path in self._root.rglob("*") if path.is_file()):
                if self._stored.get(path) != (size := path.stat().st_size):
                    self._run.write(path.relative_to(self._root).as_posix(), path.read_bytes())
                    self._stored[path] = size

    def close(self, state: AttemptState) -> None:
        self.flush()
        for writer in self._writers.values():
            writer.close()
        if not self._in_place:
            shutil.rmtree(self._root, ignore_errors=True)


class _Writer:
    """Writer of one event file; its name starts with the time, since TensorBoard reads files in order of name."""

    def __init__(self, folder: Path, first: Point) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = path.open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=first.time, file_version="brain.Event:2"))
        restart = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=first.time, step=first.step, session_log=restart))

    def add(self, point: Point) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
        self._write(Event(wall_time=point.time, step=point.step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
