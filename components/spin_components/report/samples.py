"""Sampled pairs shown on the report page, and their text."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from spin_components.errors import SpinError
from spin_components.record.history import History
from spin_components.report.answers import Answers
from spin_components.report.series import evenly
from spin_components.store.base import RunStore

logger = logging.getLogger(__name__)

MOST_CHARACTERS = 4000
"""Maximum number of characters of one text."""
SIZE_BUDGET = 4_000_000
"""Maximum size of all rows on the page, bytes; above it fewer pairs are shown."""

_TOKENIZER_FILE = "tokenizer.json"
Decode = Callable[[Sequence[int]], str]


def sample_rows(run: RunStore, history: History, answers: list[Answers]) -> dict[str, Any]:
    """Return prompts with all their answers, for the page's table.

    Returns: `rows`, `total` (number of pairs), and `prefix` and `suffix`, the text that all prompts begin and end with
        and that the table omits.
    """
    if not answers:
        return {"rows": [], "total": 0, "prefix": "", "suffix": ""}
    decode = _decoder(run, history)
    rows = _decoded(answers, decode) if decode else _from_manifests(history)
    prefix, suffix = _shared_ends([row["prompt"] for row in rows])
    return {"rows": rows, "total": answers[-1].num_pairs, "prefix": prefix, "suffix": suffix}


def _decoder(run: RunStore, history: History) -> Decode | None:
    """Decoder of the newest published policy's tokenizer, fetched without weights; None if it cannot be loaded."""
    if key := next((key for key in _tokenizer_keys(history) if key), None):
        from tokenizers import Tokenizer

        try:
            manifest = next(m for m in history.manifests() if key in m.outputs)
            files = {key: manifest.outputs[key]}
            tokenizer = Tokenizer.from_file(str(run.fetch(files, what="the tokenizer") / key))
        except (SpinError, ValueError) as error:  # an unknown format, or just pruned
            logger.warning("the tokenizer cannot be loaded, the report shows only samples of manifests: %s", error)
            return None
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))
    return None


def _tokenizer_keys(history: History) -> list[str | None]:
    tokenizers: list[str | None] = []
    for iteration in reversed(history.published):
        if iteration.published:
            keys = iteration.published.outputs
            tokenizers.append(next((key for key in keys if key.endswith(f"/{_TOKENIZER_FILE}")), None))
    return tokenizers


def _decoded(answers: list[Answers], decode: Decode) -> list[dict[str, Any]]:
    selected = sorted({*answers[-1].spread, *(index for each in answers for index in each.extremes)})
    num_iterations = answers[-1].iteration + 1
    rows: dict[int, dict[str, Any]] = {}
    for each in reversed(answers):  # the newest iteration has all current prompts; an older one may have more
        for pair in each.sampled(selected):
            row = rows.setdefault(pair["index"], {}) or _row(pair, decode, num_iterations)
            row["answers"][each.iteration] = _answer(pair, decode)
            rows[row["index"]] = row
    ordered = [rows[index] for index in sorted(rows)]
    sizes = [_size(row) for row in ordered]
    chosen = list(range(len(ordered)))
    while len(chosen) > 1 and (size := sum(sizes[i] for i in chosen)) > SIZE_BUDGET:
        chosen = [chosen[i] for i in evenly(len(chosen), int(len(chosen) * SIZE_BUDGET / size) or 1)]
    return [ordered[i] for i in chosen]


def _size(row: dict[str, Any]) -> int:
    """Bytes of a row in the page, where `<`, `>` and `&` take six each; see `page.embedded_json`."""
    text = json.dumps(row, ensure_ascii=False)
    return len(text.encode("utf-8", "replace")) + 5 * sum(map(text.count, "<>&"))


def _row(pair: dict[str, Any], decode: Decode, num_iterations: int) -> dict[str, Any]:
    return {
        "index": pair["index"],
        "prompt": _cut(decode(pair["prompt_ids"])),
        "actual": _cut(decode(pair["actual_ids"])),
        "tokens": len(pair["actual_ids"]),
        "answers": [None] * num_iterations,
    }


def _answer(pair: dict[str, Any], decode: Decode) -> dict[str, Any]:
    margin = float(pair["margin"])
    return {
        "text": _cut(decode(pair["generated_ids"])),
        "tokens": len(pair["generated_ids"]),
        "end": pair["finish_reason"],
        "margin": round(margin, 4) if math.isfinite(margin) else None,
    }


def _from_manifests(history: History) -> list[dict[str, Any]]:
    """Rows of the few pairs that `generate` decoded into its manifests, used while no policy is published."""
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
    """Common prefix and suffix of all prompts, cut at a boundary of the chat template (a line end or bracket)."""
    if len(prompts) < 2:
        return "", ""
    prefix = _common(prompts)
    prefix = prefix[: max(prefix.rfind(mark) + 1 for mark in ("\n", ">", "]"))]
    rest = [prompt[len(prefix) :] for prompt in prompts]
    suffix = _common([prompt[::-1] for prompt in rest])[::-1]
    start = re.search(r"[\n<\[]", suffix)
    return prefix, suffix[start.start() :] if start else ""


def _common(texts: list[str]) -> str:
    """Common prefix of texts."""
    low, high = min(texts), max(texts)
    same = (first == second for first, second in zip(low, high, strict=False))
    return low[: sum(takewhile(bool, same))]
