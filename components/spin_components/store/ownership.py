"""Which files below a run's address the run itself made; cleaning up touches no others.

The address may hold a user's own files, and whole other runs in folders of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from spin_components.store import layout

_MARKS = (layout.RUN, layout.ATTEMPT, layout.LEASE)
"""Files that a folder has if it is a run, from its first step on."""

_TABLE = r"(-[a-z]+)?\.(json|parquet)"
_OWN = re.compile(
    rf"""
    (run|attempt|lease|best|latest)\.json
    | data/(manifest\.json | (train|validation)-\d{{5}}\.parquet | rendered/(manifest\.json | \d{{5,}}\.arrow))
    | base/(validation|evaluation){_TABLE}
    | inputs/([a-z_]+\.(json|jsonl|jinja) | (model|tasks)(/.+)?)
    | iterations/\d+/(checkpoint\.json | evaluation{_TABLE} | (generations|ref_logprobs)/\d{{5}}\.(parquet|json))
    | (warm_up|control/\d+)/(manifest\.json | evaluation{_TABLE})
    | (iterations/\d+|control/\d+|warm_up)/epochs/\d+/(
        (manifest|partial|watched|metrics)\.json | rewards\.parquet | validation{_TABLE}
        | (policy|trainer|adapter|partial)(/.+)?
      )
    | report/index\.html
    | leases/\d{8}(\.json|/.+)
    | (events|tracking|tensorboard)/.+
    """,
    re.VERBOSE,
)
_STAGED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")
_SCRATCH = re.compile(r"\.(made-|epoch--?\d+-\d+-|probe\.|\.clock\.)[0-9a-f]{8}\.part")


def is_own(key: str) -> bool:
    """Whether a step writes a file or folder of this name."""
    return _OWN.fullmatch(key) is not None


def is_own_leftover(key: str) -> bool:
    """Whether a name is that of a write which a step began: hidden, beside what it was to become."""
    folder, _, name = key.rpartition("/")
    if not folder and _SCRATCH.fullmatch(name):
        return True
    staged = _STAGED.fullmatch(name)
    return staged is not None and is_own(f"{folder}/{staged[1]}" if folder else staged[1])


def is_staging(name: str) -> bool:
    """Whether a file's name is one that a write has until it is complete, or that of a folder a step works in."""
    return bool(_STAGED.fullmatch(name) or _SCRATCH.fullmatch(name))


def folders_of_other_runs(keys: Iterable[str]) -> tuple[str, ...]:
    """Folders below a run that are runs themselves, each with a `/` at its end; from the keys of all files."""
    ends = tuple(f"/{mark}" for mark in _MARKS)
    return tuple({f"{key.rpartition('/')[0]}/" for key in keys if key.endswith(ends)})


def is_other_run(folder: Path) -> bool:
    """Whether a local folder is a run."""
    return any((folder / mark).is_file() for mark in _MARKS)


def leftovers(root: Path) -> Iterator[Path]:
    """Find the files and folders of begun writes in a run's folder, not in other runs below it."""
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        yield from _leftovers(root, path)


def _leftovers(root: Path, path: Path) -> Iterator[Path]:
    if is_own_leftover(path.relative_to(root).as_posix()):
        yield path
    elif path.is_dir() and not path.is_symlink() and not is_other_run(path):
        for each in sorted(path.iterdir()):
            yield from _leftovers(root, each)
