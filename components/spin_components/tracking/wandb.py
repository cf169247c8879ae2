"""Weights & Biases tracker: a W&B run for each branch of a run, continued by every step."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.local import LocalRun
from spin_components.tracking.tracker import AttemptState, Branch, Point, TrackerState, flat, run_name

_INIT_S = 20.0
_STEP = "global_step"


class WandbTracker:
    """Logs to the W&B server, or to files for `wandb sync` in the run's `tracking/` folder.

    W&B numbers steps itself and does not replace them, so the optimizer step is logged as a metric that serves as the
    charts' x axis. Steps that the stored state lists as sent are skipped. The API key comes from WANDB_API_KEY or W&B's
    own login.
    """

    def __init__(self, run: RunStore, settings: Settings, branch: Branch) -> None:
        import wandb

        tracking = settings.tracking
        target = {"project": tracking.wandb_project, "entity": tracking.wandb_entity, "mode": tracking.wandb_mode}
        self._run, self._state = run, TrackerState(run, "wandb", target, branch)
        stored = self._state.read()
        self._id = str(stored.get("id") or secrets.token_hex(4))
        self._last: dict[str, int] = dict(stored.get("last", {}))
        self._state.write({"id": self._id, "last": self._last})  # before the W&B run exists, so later steps continue it
        self._is_offline = tracking.wandb_mode == "offline"
        self._writes_in_place = self._is_offline and isinstance(run, LocalRun)
        self._folder = (
            run.scratch / layout.TRACKING if self._writes_in_place else Path(tempfile.mkdtemp(prefix="spin-wandb-"))
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        self._wandb: Any = wandb.init(
            project=tracking.wandb_project,
            entity=tracking.wandb_entity or None,
            id=self._id,
            name=run_name(settings, branch),
            group=settings.run.name,
            job_type=branch,
            config=flat(settings) | {"run_uri": run.uri},
            resume="allow",
            mode=tracking.wandb_mode,
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
        """Store up to which step metrics were logged; W&B sends them by itself."""
        self._state.write({"id": self._id, "last": self._last})

    def close(self, state: AttemptState) -> None:
        self._wandb.finish(exit_code=1 if state == "failed" else 0)
        self.flush()
        if self._is_offline:
            import wandb

            wandb.teardown()  # its service has written all files once it has stopped
        if self._is_offline and not self._writes_in_place:
            self._store_files()
        if not self._writes_in_place:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _store_files(self) -> None:
        for path in self._folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                key = f"{layout.TRACKING}/{path.relative_to(self._folder).as_posix()}"
                self._run.write(key, path.read_bytes())
