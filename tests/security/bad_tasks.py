"""Bad task files and templates of an evaluation, as `prepare` finds them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from security.bad_inputs import BadInput
from spin_components.harness.task_files import check_task_files

FILES: dict[str, tuple[bytes, str]] = {
    "a function": (b"task: a\ndoc_to_text: !function u.f\n", r"a\.yaml, line 2: !function u\.f runs code"),
    "a function as key": (b"task: a\nmetadata: {!function u.f: 1}\n", r"line 2: !function u\.f runs code"),
    "a function behind an alias": (b"x: &x !function u.f\ntask: *x\n", r"line 1: !function u\.f runs code"),
    "an object": (b"task: !!python/object/apply:os.system [x]\n", r"YAML tag tag:yaml\.org,2002:python/object/apply"),
    "a metric's file": (b"task: a\nmetric_list: [{metric: /tmp/m.py}]\n", r"the metric '/tmp/m\.py' may run code"),
    "a downloaded metric": (b"task: a\nmetric_list: [{metric: them/m}]\n", r"the metric 'them/m' may run code"),
    "a metric that is a table": (b"task: a\nmetric_list: [{metric: {a: 1}}]\n", r"the metric \{'a': 1\} may run code"),
    "a foreign filter": (b"task: a\nfilter_list: [{filter: [{function: x}]}]\n", r"the filter 'x' may run code"),
    "pickles": (b"task: a\ndataset_path: pandas\n", r"dataset_path = 'pandas' may run code"),
    "a class": (b"task: a\nclass: !function u.C\n", r"!function u\.C runs code"),
    "prompts of others": (b"task: a\nuse_prompt: 'x.yaml:p'\n", r"use_prompt = 'x\.yaml:p' may run code"),
    "an unknown key": (b"task: a\nrecipe: x\n", r"the unknown key 'recipe' may run code"),
    "a model's code": (b"task: a\nunsafe_code: true\n", r"line 2: unsafe_code runs code"),
    "open": (b"task: [", r"a\.yaml is not YAML"),
    "tabs": (b"task:\n\t- a\n", r"a\.yaml is not YAML"),
    "not UTF-8": (b"task: \xff\n", r"a\.yaml is not YAML"),
    "two documents": (b"task: a\n---\ntask: b\n", r"a\.yaml is not YAML"),
    "a deep nest": (b"[" * 50_000, r"nested more than 40 deep"),
    "a bomb": (
        b"a: &a [1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 108)),
        r"has more than 200000 values where its aliases are written out",
    ),
    "a loop": (b"task: &a [*a]\n", r"an alias that refers to itself"),
    "large": (b"#" * (5 << 20), r"has 5242880 bytes, expected a task file of at most"),
}
"""Task files, with the message."""


def _check(content: bytes) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        (folder / "a.yaml").write_bytes(content)
        check_task_files(folder, what="tasks", trust=False)

    return use


def _include(folder: Path) -> None:
    (folder / "a.yaml").write_text("task: a\ninclude: more.txt\n")
    (folder / "more.txt").write_text("doc_to_text: !function u.f\n")
    check_task_files(folder, what="tasks", trust=False)


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "a.yaml")
    check_task_files(folder, what="tasks", trust=False)


def _included_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "a.yaml").write_text("task: a\ninclude: pipe\n")
    check_task_files(folder, what="tasks", trust=False)


BAD_TASKS = [
    *(BadInput(f"task: {name}", _check(content), message) for name, (content, message) in FILES.items()),
    BadInput("task: an included function", _include, r"a\.yaml > more\.txt, line 1: !function u\.f runs code"),
    BadInput("task: a pipe", _pipe, r"a\.yaml is no regular file"),
    BadInput("task: an included pipe", _included_pipe, r"a\.yaml > pipe is no regular file"),
    BadInput("task: none", lambda folder: check_task_files(folder, what="tasks", trust=False), r"has no task file"),
]
