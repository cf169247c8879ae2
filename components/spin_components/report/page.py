"""A run as one self-contained HTML page: its text is rendered here, its charts and samples by the page's own script."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spin_components.checkpoint.decisions import name_of
from spin_components.data.pair_counts import PairCounts, in_words
from spin_components.evaluate.figures import evaluation_rows, remarks
from spin_components.report import lineage
from spin_components.report.answers import Answers, read_answers
from spin_components.report.cautions import cautions
from spin_components.report.history import History, read_history
from spin_components.report.samples import sample_rows
from spin_components.report.series import (
    drift,
    lengths,
    published_differences,
    read_steps,
    step_series,
    unlearnt_loss,
    validation_points,
)
from spin_components.report.verdict import MINUS, judge, percent, perplexity, signed
from spin_components.store.run import RunStore

TEMPLATES = Path(__file__).parent / "template"
STYLES = ("page.css", "parts.css")
_SCRIPTS = ("theme.js", "chart.js", "plots.js", "samples.js", "page.js")


def build_page(run: RunStore) -> str:
    """The report of a run as it stands.

    Raises:
        ConfigError: the run has nothing to report yet.
        IntegrityError: what is stored is damaged.
    """
    history = read_history(run)
    answers = [read_answers(run, iteration) for iteration in history.iterations if iteration.num_pairs]
    rows, points = read_steps(run, history), validation_points(run, history)
    verdict = judge(history, published_differences(points))
    samples = sample_rows(run, history, answers)
    data = {
        "base": verdict.base_loss if history.base is None else float(history.base.facts["val_loss"]),
        "validation": [
            {**point, "difference": asdict(point["difference"]) if point["difference"] else None}
            for point in points
            if point["val_loss"] is not None
        ],
        "steps": step_series(rows),
        "unlearnt": unlearnt_loss(history.settings.get("objective", {})),
        "lengths": lengths(answers),
        "finish": [{"iteration": it.number, **it.finish_reasons} for it in history.iterations if it.num_pairs],
        "drift": drift(answers),
        "samples": samples,
    }
    return render(
        "page.html",
        scripts=_SCRIPTS,
        data=data,
        history=history,
        verdict=verdict,
        cautions=cautions(history, rows),
        tiles=_tiles(history, verdict),
        iterations=[_iteration_row(history, number) for number in range(len(history.iterations))],
        held_out=_held_out(history),
        evaluation=_evaluation(history),
        origins=lineage.origins(history),
        costs=lineage.costs(history, _answer_tokens(history, answers)),
        settings=lineage.settings_tables(history),
    )


def render(template: str, *, scripts: tuple[str, ...], data: Any, folder: Path = TEMPLATES, **names: Any) -> str:
    """A page from a template, with styles, scripts and data inside.

    The page's own policy lets a browser run these scripts and styles, by their digests, and fetch nothing.

    Args:
        template: name of a file in `folder`, or in this package's templates.
        scripts: names of files, likewise, in the order they run.
        data: JSON for the scripts.
        folder: of the template.
        names: what the template uses; text is escaped.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "duration": lineage.duration, "perplexity": perplexity, "nats": _nats}
    script, style = _joined(scripts, folder), _joined(STYLES, folder)
    policy = (
        f"default-src 'none'; script-src '{_source(script)}'; style-src '{_source(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(
        **names, data=embedded_json(data), script=Markup(script), style=Markup(style), policy=policy
    )


def embedded_json(value: Any) -> Markup:
    """JSON that can stand within a script element: what could end it, or a line of a script, is escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _joined(names: tuple[str, ...], folder: Path) -> str:
    paths = (folder / name if (folder / name).exists() else TEMPLATES / name for name in names)
    return "\n" + "\n".join(path.read_text("utf-8") for path in paths)


def _source(content: str) -> str:
    """A script or style as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _nats(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def _tiles(history: History, verdict: Any) -> list[tuple[str, str, str]]:
    """The key figures: name, value, and what to hold it against."""
    published = [iteration.published for iteration in history.published if iteration.published]
    manifests = list(history.manifests())
    tiles = []
    if verdict.judged is not None:
        where = "" if verdict.judged == verdict.iteration else f"iteration {verdict.judged}, "
        tiles += [
            ("val_loss", _nats(verdict.judged_loss), f"{where}base {_nats(verdict.base_loss)}"),
            ("perplexity", perplexity(verdict.judged_loss), f"{where}base {perplexity(verdict.base_loss)}"),
        ]
        if found := verdict.difference:
            share = percent(found.num_better / found.num_answers)
            tiles.append(("held-out answers likelier", share, f"{found.num_better} of {found.num_answers}"))
    if published:
        facts = published[-1].facts
        tiles.append(("pairs told apart", _nats(facts["acc"], 2), f"acc, last step of iteration {facts['iteration']}"))
    num = len(history.published)
    detail = f"{num} of {history.settings['spin']['max_iterations']} iterations"
    return [*tiles, ("time at work", lineage.duration(lineage.total_s(manifests)), detail)]


def _iteration_row(history: History, number: int) -> dict[str, Any]:
    """What the table says of an iteration, finished or not."""
    iteration = history.iterations[number]
    manifests = [m for pair in iteration.shards for m in pair if m]
    manifests += [m for epoch in iteration.epochs for m in (epoch.trained, epoch.check) if m]
    facts, counts = iteration.published.facts if iteration.published else {}, iteration.pair_counts
    return {
        "number": number,
        "facts": facts,
        "follows": _follows(facts),
        "num_pairs": counts.num_pairs or iteration.num_pairs,
        "num_dropped": counts.num_dropped,
        "about_pairs": about_pairs(number, counts),
        "num_steps": sum(int(epoch.trained.facts["num_steps"]) for epoch in iteration.epochs),
        "work_s": lineage.total_s(manifests),
    }


def about_pairs(iteration: int, counts: PairCounts) -> str:
    """What the number of an iteration's pairs leaves open: history, and why some were dropped; empty of neither."""
    found, dropped, left_out = "", in_words(counts.dropped), in_words(counts.history_dropped)
    if counts.num_history:
        older = ", ".join(f"{n:,} of iteration {t}" for t, n in counts.num_by_origin.items() if t != iteration)
        own = f"{counts.num_pairs - counts.num_history:,} pairs of its own"
        found = f"Iteration {iteration} trains on {own}, {older}; all scored under its own reference."
    if left_out:
        found += f" Left out of the older: {left_out}."
    if dropped:
        found += f" Dropped of iteration {iteration}'s own: {dropped}."
    return found.strip()


def _follows(facts: dict[str, Any]) -> str:
    """What came of an iteration, and what came after it."""
    outcome, decision = facts.get("outcome", ""), facts.get("decision", "not finished")
    if decision == "roll_back":
        decision = f"rolled back to {name_of(facts['next'])}"
    return decision if outcome in ("", decision) else f"{outcome}, {decision}"


def _held_out(history: History) -> list[tuple[str, dict[str, Any]]]:
    """Models that answered held-out prompts, by name, with the figures of their validations."""
    checks = [("base", history.base)] + [
        (f"iteration {it.number}", it.epochs[it.published.facts["epoch"]].check)
        for it in history.published
        if it.published
    ]
    return [(name, check.facts) for name, check in checks if check and check.facts.get("num_samples")]


def _evaluation(history: History) -> dict[str, Any] | None:
    """Evaluated models as a table: `models`, `rows` of a name and cells, `remarks`; None where there are none."""
    found = [("base", history.base_evaluated), *((f"iteration {it.number}", it.evaluated) for it in history.iterations)]
    models = [(name, manifest.facts) for name, manifest in found if manifest]
    if not models:
        return None
    names, cells = evaluation_rows([facts for _, facts in models])
    return {
        "models": [name for name, _ in models],
        "rows": list(zip(names, cells, strict=True)),
        "remarks": [f"{name}, {remark}" for name, facts in models for remark in remarks(facts)],
    }


def _answer_tokens(history: History, answers: list[Answers]) -> int:
    by_origin = {found.iteration: found for found in answers}
    total = 0
    for found in answers:
        for origin, index in found.trained.items():
            played = by_origin[origin]
            places = np.searchsorted(played.index, index)
            tokens = int(played.num_actual[places].sum() + played.num_generated[places].sum())
            total += tokens * len(history.iterations[found.iteration].epochs)
    return total
