"""Weights & Biases: one run there for the whole run, gone on with by every step."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.local import LocalRun
from spin_components.store.run import RunStore
from spin_components.tracking.mlflow import flat
from spin_components.tracking.record import Record
from spin_components.tracking.trackers import Outcome, Point

_INIT_S = 20.0
_STEP = "global_step"


class WandbTracker:
    """Logs online, or into files for `wandb sync` below the run's `tracking/`.

    W&B counts steps by itself and takes none twice, so the optimizer's step is a value beside the others, which charts
    are drawn over; what was sent already, as the run's record says, is not sent again. The key comes from
    WANDB_API_KEY or W&B's own login.
    """

    def __init__(self, run: RunStore, settings: Settings) -> None:
        import wandb

        wanted = settings.tracking
        target = {"project": wanted.wandb_project, "entity": wanted.wandb_entity, "mode": wanted.wandb_mode}
        self._run, self._record = run, Record(run, "wandb", target)
        known = self._record.read()
        self._id = str(known.get("id") or secrets.token_hex(4))
        self._last: dict[str, int] = dict(known.get("last", {}))
        self._record.write(
            {"id": self._id, "last": self._last}
        )  # before W&B hears of it: steps after this go on with it
        self._is_offline = wanted.wandb_mode == "offline"
        self._keeps = self._is_offline and isinstance(run, LocalRun)
        self._folder = run.scratch / layout.TRACKING if self._keeps else Path(tempfile.mkdtemp(prefix="spin-wandb-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._wandb: Any = wandb.init(
            project=wanted.wandb_project,
            entity=wanted.wandb_entity or None,
            id=self._id,
            name=settings.run.name,
            config=flat(settings) | {"run_uri": run.uri},
            resume="allow",
            mode=wanted.wandb_mode,
            dir=str(self._folder),
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=_INIT_S,
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
            ),
        )
        self._wandb.define_metric("*", step_metric=_STEP)

    def log(self, points: Collection[Point]) -> None:
        for point in points:
            new = {name: value for name, value in point.values.items() if point.step > self._last.get(name, -1)}
            if new:
                self._wandb.log({**new, _STEP: point.step})
                self._last |= dict.fromkeys(new, point.step)

    def flush(self) -> None:
        """W&B sends by itself; the record says up to where."""
        self._record.write({"id": self._id, "last": self._last})

    def close(self, outcome: Outcome) -> None:
        self._wandb.finish(exit_code=1 if outcome == "failed" else 0)
        self.flush()
        if self._is_offline:
            import wandb

            wandb.teardown()  # its service has written everything once it has ended
        if self._is_offline and not self._keeps:
            self._store_files()
        if not self._keeps:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _store_files(self) -> None:
        for path in self._folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                key = f"{layout.TRACKING}/{path.relative_to(self._folder).as_posix()}"
                self._run.write(key, path.read_bytes())
