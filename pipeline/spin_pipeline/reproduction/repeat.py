"""A recorded run made again on this machine."""

from __future__ import annotations

from rich.console import Console

from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.run import RunStore, open_run
from spin_pipeline.cluster_settings import Configuration
from spin_pipeline.local import run_local
from spin_pipeline.status import RunStatus, read_status


def repeat(settings: Configuration, console: Console) -> RunStatus:
    """Run it, go on with it, or find that it is done; returns how it stands.

    Raises: as `local.run_local`.
    """
    with open_run(settings.run.uri) as run:
        if _is_done(run, settings):
            console.print(f"made again before: {run.uri}", highlight=False, markup=False, soft_wrap=True)
            return read_status(run.uri)
    return run_local(settings, console)


def _is_done(run: RunStore, settings: Configuration) -> bool:
    """Whether the run is there with these very settings, and over."""
    if not (run.exists(layout.RUN) and run.exists(layout.ATTEMPT)):
        return False
    wanted = settings.model_dump(mode="json", include=set(Settings.model_fields))
    return bool(run.read_json(layout.RUN)["settings"] == wanted) and read_status(run.uri).state == "done"
