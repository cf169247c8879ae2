"""The numeric and the watch tests on other processors' instructions, thread counts, load and order: `make test-matrix`.

`python tests/matrix.py [PATH ...] [--only ROW ...] [--keep FOLDER]`; without paths, the unit and parity tests that
compute (their module imports torch, numpy or `bounds`) and every test of `watch`. Configurations are chosen so that
each two values of two settings meet in one of them; those without busy loops run as many at a time as there are cores.
Exits 1 where any test failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent
UNSET = "-"
SETTINGS: dict[str, tuple[str, ...]] = {
    "ATEN_CPU_CAPABILITY": (UNSET, "default", "avx2"),
    "MKL_ENABLE_INSTRUCTIONS": (UNSET, "AVX2", "SSE4_2"),
    "ONEDNN_MAX_CPU_ISA": (UNSET, "AVX2"),
    "OMP_NUM_THREADS": ("1", "2", "4"),
    "beside": (UNSET, "a busy loop a core"),
    "order": ("as written", "shuffled"),
}
Row = tuple[str, ...]
"""A value of each setting, in their order."""
Pair = tuple[tuple[int, str], ...]
"""Two settings by their positions, each with a value."""
_NUM_TRIES = 100


class Outcome(NamedTuple):
    """How one configuration's tests ended: pytest's exit code, counts, and the names of those that failed."""

    code: int
    num_passed: int
    num_skipped: int
    failed: list[str]
    seconds: float

    @property
    def is_good(self) -> bool:
        return self.code == 0 and self.num_passed > 0


def pairwise() -> list[Row]:
    """Few rows in which every two values of two settings meet: the best of some greedy choices, the same each time."""
    rows = list(itertools.product(*SETTINGS.values()))
    pairs = {row: _pairs(row) for row in rows}
    first, second = sorted(map(len, SETTINGS.values()))[-2:]
    best = rows
    for seed in range(_NUM_TRIES):
        best = min(best, _greedy(random.Random(seed).sample(rows, len(rows)), pairs), key=len)
        if len(best) == first * second:  # fewer cannot have all pairs of those two settings
            break
    return best


def _greedy(rows: Sequence[Row], pairs: Mapping[Row, set[Pair]]) -> list[Row]:
    """At each turn the row with most of the missing pairs, the first of equals."""
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        chosen.append(max(rows, key=lambda row: len(missing & pairs[row])))
        missing -= pairs[chosen[-1]]
    return chosen


def _pairs(row: Row) -> set[Pair]:
    return set(itertools.combinations(enumerate(row), 2))


def default_paths() -> list[str]:
    """Every test module that computes with floats, by its imports, and those of the live view."""
    computes = re.compile(r"^ *(?:import|from) (?:torch|numpy|support import bounds|support\.bounds)\b", re.MULTILINE)
    modules = [path for folder in ("unit", "parity") for path in sorted((ROOT / folder).rglob("test_*.py"))]
    numeric = [path for path in modules if computes.search(path.read_text("utf-8"))]
    watch = [path for path in sorted(ROOT.rglob("test_*.py")) if "watch" in path.relative_to(ROOT).as_posix()]
    return [str(path) for path in dict.fromkeys(numeric + watch)]


@contextmanager
def busy_cores() -> Iterator[None]:
    """A loop on every core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(row: Row, paths: Sequence[str], folder: Path, *, seed: int) -> Outcome:
    """The tests in one configuration, in one process; output and report stay in the folder."""
    values = dict(zip(SETTINGS, row, strict=True))
    beside, order = values.pop("beside"), values.pop("order")
    environment = {name: value for name, value in os.environ.items() if name not in values}
    environment |= {name: value for name, value in values.items() if value != UNSET}
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={folder / 'report.xml'}", *paths]
    if order == "shuffled":
        command += ["-p", "randomly", f"--randomly-seed={seed}"]
    started = time.monotonic()
    with (folder / "output.txt").open("w") as output, nullcontext() if beside == UNSET else busy_cores():
        code = subprocess.run(command, env=environment, stdout=output, stderr=output, cwd=ROOT.parent).returncode
    return read_report(folder / "report.xml", code, time.monotonic() - started)


def read_report(path: Path, code: int, seconds: float) -> Outcome:
    """What pytest wrote of its tests."""
    cases = list(ElementTree.parse(path).iter("testcase")) if path.exists() else []
    kinds = [{child.tag for child in case} for case in cases]
    bad = [kind & {"failure", "error"} for kind in kinds]
    failed = [f"{case.get('classname')}::{case.get('name')}" for case, found in zip(cases, bad, strict=True) if found]
    skipped = sum("skipped" in kind for kind in kinds)
    return Outcome(code, len(cases) - len(failed) - skipped, skipped, failed, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="test modules or folders")
    parser.add_argument("--only", type=int, nargs="+", metavar="ROW", help="these configurations, counted from 1")
    parser.add_argument("--keep", type=Path, help="folder for each configuration's output, to be created")
    options = parser.parse_args()
    paths = options.paths or default_paths()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="test-matrix-"))
    console = Console()
    console.print(f"{len(paths)} test modules or folders; output in {folder}")
    rows = {number: row for number, row in enumerate(pairwise(), start=1) if number in (options.only or [number])}
    outcomes: dict[int, tuple[Row, Outcome]] = {}

    def play(number: int) -> None:
        outcomes[number] = row, outcome = rows[number], run(rows[number], paths, folder / str(number), seed=number)
        console.print(f"{number}: {', '.join(row)}: {'passed' if outcome.is_good else 'FAILED'}")

    is_alone = {number: row[list(SETTINGS).index("beside")] != UNSET for number, row in rows.items()}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # most of a row is on one core
        list(pool.map(play, [number for number in rows if not is_alone[number]]))
    for number in [number for number in rows if is_alone[number]]:
        play(number)
    table = Table("", *SETTINGS, "passed", "skipped", "failed", "s")
    for number, (row, found) in sorted(outcomes.items()):
        counts = (found.num_passed, found.num_skipped, len(found.failed) or ("" if found.is_good else "pytest itself"))
        table.add_row(str(number), *row, *map(str, counts), f"{found.seconds:.0f}")
    console.print(table)
    for number, (_, found) in sorted(outcomes.items()):
        for name in found.failed:
            console.print(f"{number}: {name}", markup=False)
    return 0 if outcomes and all(found.is_good for _, found in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
