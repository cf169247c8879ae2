"""Runs with faults in a local folder."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from faults.attempts import MOMENT, Attempt, AttemptResult
from faults.damage import damage
from faults.disks import enlarge, small_disk
from faults.ends import End, leftovers, read_end
from faults.ground import describe, repeat, story, tables, to_delete
from faults.plans import DAMAGE, Fault
from spin_components.store.local import LocalRun


class FileGround:
    """One folder for runs, emptied before each fault.

    Args:
        folder: of all files.
        model: a model folder.
        questions: a data file.

    Attributes:
        root: the run's folder.
        end: the result of the undisturbed run.
    """

    def __init__(self, folder: Path, model: Path, questions: Path) -> None:
        self.root = folder / "disk" / "run"
        self.end = End()
        self._logs = folder / "logs"
        self._sources = {"model": {"base": str(model)}, "data": {"train": str(questions)}}

    def begin(self, **variables: str) -> Attempt:
        """Start an attempt at the run."""
        variables = {"SPIN_CACHE_DIR": str(self.root.parent.with_name("cache")), **variables}
        return Attempt(tables(str(self.root), **self._sources), variables, self._logs)

    def play_undisturbed(self) -> None:
        """Play the whole run."""
        outcome = self.begin().wait()
        assert outcome.kind == "done", outcome.message
        self.end = read_end(LocalRun(self.root))

    def suffer(self, fault: Fault) -> str:
        """Run with a fault and repeat the command until it succeeds; see `Ground.suffer`."""
        shutil.rmtree(self.root, ignore_errors=True)
        with ExitStack() as stack:
            if fault.kind == "full disk":
                stack.enter_context(small_disk(self.root.parent, fault.size))
            outcomes = repeat(
                lambda number: self._play(fault, number), lambda outcome: self._obey(outcome, fault), what=str(fault)
            )
            run = LocalRun(self.root)
            differences = read_end(run).differences(self.end) + leftovers(self.root)
            assert not differences, "\n  ".join([f"{fault} ended differently after {story(outcomes)}:", *differences])
            assert len(outcomes) > 1, f"{fault} never happened"
        return describe(outcomes)

    def _play(self, fault: Fault, number: int) -> AttemptResult:
        if number or fault.kind == "full disk":
            return self.begin().wait()
        outcome = self.begin(**{MOMENT: str(self.root / fault.step)}).wait()
        if fault.kind in DAMAGE:
            damage(LocalRun(self.root), fault)
        return outcome

    def _obey(self, outcome: AttemptResult, fault: Fault) -> None:
        if fault.kind == "full disk":
            assert "space" in outcome.message, f"the error does not name the full disk: {outcome.message}"
            enlarge(self.root.parent)
        elif doomed := to_delete(outcome.message):
            Path(doomed).unlink()
