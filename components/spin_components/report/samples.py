"""The samples of the page: which pairs are shown, and their text."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from spin_components.errors import SpinError
from spin_components.report.answers import Answers
from spin_components.report.decimation import evenly
from spin_components.report.history import History
from spin_components.store.run import RunStore

logger = logging.getLogger(__name__)

MOST_ROWS = 500
"""Pairs on the page, but for the extremes."""
EXTREMES = 20
"""Pairs with the smallest and with the largest margin of an iteration that are shown besides."""
MOST_CHARACTERS = 4000
"""Of one text; the rest is left out."""
TEXT_BUDGET = 6_000_000
"""Characters of all texts; the pairs are thinned out to keep to it."""

_TOKENIZER_FILE = "tokenizer.json"
Decode = Callable[[Sequence[int]], str]


def sample_rows(run: RunStore, history: History, answers: list[Answers]) -> dict[str, Any]:
    """Prompts with all their answers, as the page's table takes them.

    Returns: `rows`, `total` (pairs there are), and the text that all prompts begin and end with, which the table
        leaves out: `prefix`, `suffix`.
    """
    if not answers:
        return {"rows": [], "total": 0, "prefix": "", "suffix": ""}
    decode = _decoder(run, history)
    rows = _decoded(answers, decode) if decode else _kept_by_generate(history)
    prefix, suffix = _shared_ends([row["prompt"] for row in rows])
    return {"rows": rows, "total": len(answers[-1].index), "prefix": prefix, "suffix": suffix}


def _decoder(run: RunStore, history: History) -> Decode | None:
    """The tokenizer of the newest policy in this run, fetched without the weights; None where it has no such file."""
    if key := next((key for key in _tokenizer_keys(history) if key), None):
        from tokenizers import Tokenizer

        try:
            manifest = next(m for m in history.manifests() if key in m.outputs)
            files = {key: manifest.outputs[key]}
            tokenizer = Tokenizer.from_file(str(run.fetch(files, what="the tokenizer") / key))
        except (SpinError, ValueError) as error:  # of a format this version does not know, or just pruned
            logger.warning("samples are shown as far as they were decoded before: %s", error)
            return None
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))
    return None


def _tokenizer_keys(history: History) -> list[str | None]:
    found: list[str | None] = []
    for iteration in reversed(history.published):
        if iteration.published:
            keys = iteration.published.outputs
            found.append(next((key for key in keys if key.endswith(f"/{_TOKENIZER_FILE}")), None))
    return found


def _decoded(answers: list[Answers], decode: Decode) -> list[dict[str, Any]]:
    chosen = _chosen(answers)
    rows: dict[int, dict[str, Any]] = {}
    for found in reversed(answers):  # the newest iteration has every prompt that is played; an older one may have more
        places = np.flatnonzero(np.isin(found.index, chosen))
        for place, ids in zip(places, found.ids(places), strict=True):
            row = rows.get(int(found.index[place])) or _row(found, int(place), ids, decode, answers[-1].iteration + 1)
            row["answers"][found.iteration] = _answer(found, int(place), ids, decode)
            rows[row["index"]] = row
    ordered = [rows[index] for index in sorted(rows)]
    size = sum(_num_characters(row) for row in ordered)
    if size <= TEXT_BUDGET:
        return ordered
    return [ordered[place] for place in evenly(len(ordered), max(1, int(len(ordered) * TEXT_BUDGET / size)))]


def _num_characters(row: dict[str, Any]) -> int:
    answers = (answer["text"] for answer in row["answers"] if answer)
    return sum(len(text) for text in (row["prompt"], row["actual"], *answers))


def _chosen(answers: list[Answers]) -> list[int]:
    """Indices of the pairs to show: evenly spread ones, and those with the most extreme margins."""
    newest = answers[-1]
    chosen = set(newest.index[evenly(len(newest.index), MOST_ROWS)].tolist())
    for found in answers:
        known = np.flatnonzero(np.isfinite(found.margin))
        ranked = known[np.argsort(found.margin[known], kind="stable")]
        chosen |= set(found.index[ranked[:EXTREMES]].tolist()) | set(found.index[ranked[-EXTREMES:]].tolist())
    return sorted(chosen)


def _row(found: Answers, place: int, ids: dict[str, list[int]], decode: Decode, num_iterations: int) -> dict[str, Any]:
    return {
        "index": int(found.index[place]),
        "prompt": _cut(decode(ids["prompt_ids"])),
        "actual": _cut(decode(ids["actual_ids"])),
        "tokens": int(found.num_actual[place]),
        "answers": [None] * num_iterations,
    }


def _answer(found: Answers, place: int, ids: dict[str, list[int]], decode: Decode) -> dict[str, Any]:
    margin = float(found.margin[place])
    return {
        "text": _cut(decode(ids["generated_ids"])),
        "tokens": int(found.num_generated[place]),
        "end": str(found.finish_reason[place]),
        "margin": round(margin, 4) if math.isfinite(margin) else None,
    }


def _kept_by_generate(history: History) -> list[dict[str, Any]]:
    """The few pairs that `generate` decoded: all there is while no policy is published."""
    rows: dict[int, dict[str, Any]] = {}
    for iteration in history.iterations:
        for generated, _ in iteration.shards:
            for sample in generated.facts["samples"]:
                row = rows.setdefault(
                    int(sample["index"]),
                    {
                        "index": int(sample["index"]),
                        "prompt": _cut(sample["prompt"]),
                        "actual": _cut(sample["actual"]),
                        "tokens": None,
                        "answers": [None] * len(history.iterations),
                    },
                )
                row["answers"][iteration.number] = {
                    "text": _cut(sample["generated"]),
                    "tokens": None,
                    "end": sample["finish_reason"],
                    "margin": None,
                }
    return [rows[index] for index in sorted(rows)]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} … [{len(text):,} characters in all]"


def _shared_ends(prompts: list[str]) -> tuple[str, str]:
    """What every prompt begins and ends with, cut back to where a template could put a boundary."""
    if len(prompts) < 2:
        return "", ""
    prefix = _common(prompts)
    prefix = prefix[: max(prefix.rfind(mark) + 1 for mark in ("\n", ">", "]"))]
    rest = [prompt[len(prefix) :] for prompt in prompts]
    suffix = _common([prompt[::-1] for prompt in rest])[::-1]
    start = re.search(r"[\n<\[]", suffix)
    return prefix, suffix[start.start() :] if start else ""


def _common(texts: list[str]) -> str:
    """What all of them begin with."""
    low, high = min(texts), max(texts)
    same = (ours == theirs for ours, theirs in zip(low, high, strict=False))
    return low[: sum(takewhile(bool, same))]
