"""Runs the reproduction of a recorded run on this machine."""

from __future__ import annotations

from rich.console import Console

from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.open import open_run
from spin_pipeline.deploy.cluster_settings import Configuration
from spin_pipeline.local.run import run_local
from spin_pipeline.runs.status import RunStatus, read_status


def repeat(settings: Configuration, console: Console) -> RunStatus:
    """Run or resume the reproduction, unless it is already finished; returns its status.

    Raises: as `local.run.run_local`.
    """
    with open_run(settings.run.uri) as run:
        if _is_done(run, settings):
            console.print(f"reproduced before: {run.uri}", highlight=False, markup=False, soft_wrap=True)
            return read_status(run.uri)
    return run_local(settings, console)


def _is_done(run: RunStore, settings: Configuration) -> bool:
    """Whether the run exists with exactly these settings, and is finished."""
    if not (run.exists(layout.RUN) and run.exists(layout.ATTEMPT)):
        return False
    expected = settings.model_dump(mode="json", include=set(Settings.model_fields))
    return bool(run.read_json(layout.RUN)["settings"] == expected) and read_status(run.uri).state == "done"
