"""The picture of `watch` in the docs, drawn from recorded events.

`make docs` draws it. `PYTHONPATH=tests python -m unit.docs.picture RUN_URI` records the events anew, of a finished run.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from spin_components.record.events import read_events
from spin_components.store import layout
from spin_components.store.open import open_run
from spin_pipeline.watch.model import RunModel
from spin_pipeline.watch.view import Frame, draw

EVENTS = Path(__file__).with_name("watch_events.jsonl")
"""Events of a run, up to the middle of its last epoch."""
WIDTH, HEIGHT = 100, 32


def watch_picture() -> str:
    """What `spin-pipeline watch` showed of a run, as SVG: at the time of its last recorded event."""
    events = [json.loads(line) for line in EVENTS.read_text("utf-8").splitlines()]
    model = RunModel()
    model.apply(events)
    assert model.plan
    uri = f"runs/{model.plan.name}"
    frame = Frame(uri, max(event["time"] for event in events), "running", "cyan")
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor", legacy_windows=False)
    for line in draw(model, frame, WIDTH, HEIGHT):
        line.no_wrap, line.overflow = True, "crop"
        console.print(line)
    svg = console.export_svg(title=f"spin-pipeline watch {uri}", unique_id="watch")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # it would be fetched from the network
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def record_events(run_uri: str) -> None:
    """Keep a run's events up to the middle of its last epoch, their times counted from its start."""
    with open_run(run_uri) as run:
        events, recorded = read_events(run), run.read_json(layout.RUN)["settings"]["run"]
    halfway = [place for place, event in enumerate(events) if _is_halfway(event)]
    kept, begun = events[: halfway[-1] + 1], events[0]["time"]
    lines = [json.dumps(event | {"time": round(event["time"] - begun, 3)}, ensure_ascii=False) for event in kept]
    EVENTS.write_text("\n".join(lines).replace(recorded["uri"], f"runs/{recorded['name']}") + "\n", "utf-8")


def _is_halfway(event: dict[str, Any]) -> bool:
    return bool((event["kind"], event["step"]) == ("progress", "train-epoch") and event["total"] == 2 * event["done"])


if __name__ == "__main__":
    record_events(sys.argv[1])
