"""Shows the progress of a followed run: the events in its storage, else the tasks that KFP lists.

KFP lists the nodes of Argo's workflow: drivers, executors, loops, and each twice, without iteration, epoch or shard.
Past 1 MiB of workflow Argo compresses them, and the list stands still while the run goes on.
"""

from __future__ import annotations

import re
import time
from typing import Any

from rich.console import Console

from spin_components.errors import SpinError, StorageError
from spin_components.record.events import EventTail
from spin_components.store.addresses import scheme_of
from spin_components.store.open import open_run
from spin_pipeline.cluster.submit import run_uri_of
from spin_pipeline.watch.lines import LinePrinter

_TASK = re.compile(
    r"prepare|result|warm-up|(validate|evaluate)-base|(validate|evaluate)-warm-up|(control|(validate|evaluate)-control)-\d+|"
    r"(generate|ref-logprob|generate-and-score|checkpoint|evaluate)-\d+|"
    r"(train-epoch|validate|train-and-validate)-\d+-\d+|"
    r"(generate|ref-logprob|train-epoch(-on-nodes)?|validate|checkpoint|evaluate|retrain)(-\d+)?"
)
"""Keys of the pipeline's tasks, with iteration and epoch, and those of pipelines that were compiled before."""
_DEADLINE_S = 20.0  # it may be storage that only pods reach
_CLOCKS_S = 60.0  # the API server's clock may be ahead of the pods'


class RunProgress:
    """Prints what is new of a run.

    Args:
        console: to print to.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._lines = console, LinePrinter(console)
        self._tail: EventTail | None = None
        self._is_readable = True
        self._has_warned = False
        self._printed: set[tuple[str, str]] = set()

    def show(self, run: Any) -> None:
        """Print what is new, given KFP's answer about the run."""
        if self._is_readable and scheme_of(run_uri_of(run)) == "s3":
            self._show_events(run)
        if not (self._is_readable and self._tail):
            self._show_tasks(run)

    def _show_events(self, run: Any) -> None:
        """Print the events of this attempt; those of earlier ones are older than the run is in KFP."""
        since = run.created_at.timestamp() - _CLOCKS_S if run.created_at else 0.0
        try:
            tail = self._tail or EventTail(open_run(run_uri_of(run), deadline_s=_DEADLINE_S))
            events = [event for event in tail.new() if event["time"] >= since]
        except SpinError as error:
            self._is_readable = isinstance(error, StorageError) and self._tail is not None
            if not self._has_warned:
                self._has_warned = True
                fallback = "" if self._is_readable else "; KFP's list of tasks is shown, without iterations and epochs"
                self._print(f"the run's progress cannot be read from its storage{fallback}: {error}")
            return
        self._tail = tail
        self._lines.show(events)

    def _show_tasks(self, run: Any) -> None:
        for task in tasks_of(run):
            line = (str(task.task_id), str(task.state))
            if task.state and line not in self._printed:
                self._printed.add(line)
                self._print(f"{task.display_name:<28}{task.state.lower()}")

    def _print(self, text: str) -> None:
        clock = time.strftime("%H:%M:%S")
        self._console.print(f"{clock}  {text}", highlight=False, markup=False, soft_wrap=True)


def tasks_of(run: Any) -> list[Any]:
    """The pipeline's own tasks in KFP's list, in the order of their start."""
    details = run.run_details.task_details if run.run_details else None
    own = [task for task in details or [] if _TASK.fullmatch(task.display_name or "")]
    return sorted(own, key=lambda task: str(task.start_time or ""))


def failed_line(run: Any) -> str:
    """The failed tasks as KFP lists them, with the reason where it has one; empty where there is none."""
    names = dict.fromkeys(str(task.display_name) for task in tasks_of(run) if task.state == "FAILED")
    errors = [one.error for one in (*tasks_of(run), run) if one.error and one.error.message]
    reason = " ".join(errors[0].message.split())[-600:] if errors else ""
    words = [f"failed: {', '.join(names)}"] if names else ["failed"] if reason else []
    return ": ".join([*words, reason] if reason else words)
