"""Self-contained HTML report of a run; text is rendered by Jinja, charts and samples by the page's own scripts."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spin_components.data.pair_counts import PairCounts, in_words
from spin_components.record.controls import MINUS, compare_controls, signed
from spin_components.record.decisions import name_of, word_of
from spin_components.record.evaluation import evaluation_rows, remarks
from spin_components.record.events import read_repeats
from spin_components.record.history import History, read_history
from spin_components.report import lineage
from spin_components.report.answers import drift, lengths, read_answers
from spin_components.report.samples import sample_rows
from spin_components.report.series import (
    measure_differences,
    published_differences,
    read_steps,
    step_series,
    unlearnt_loss,
    validation_points,
)
from spin_components.report.verdict import by_measure, compute_verdict, percent, perplexity
from spin_components.report.warnings import find_warnings
from spin_components.store import layout
from spin_components.store.base import RunStore

TEMPLATES = Path(__file__).parent / "template"


STYLES = ("page.css", "parts.css")


_SCRIPTS = ("theme.js", "chart.js", "plots.js", "samples.js", "page.js")


def build_page(run: RunStore) -> str:
    """Build the HTML report of a run, finished or not.

    Raises:
        ConfigError: the run has no data manifest yet.
        IntegrityError: a stored file is damaged.
    """
    history = read_history(run)
    answers = [read_answers(run, it, history.iterations) for it in history.iterations if it.num_pairs]
    rows, points = read_steps(run, history), validation_points(run, history)
    verdict = compute_verdict(history, published_differences(points))
    if history.measure != "nll" and verdict.kind != "open":
        verdict = by_measure(history, verdict, *measure_differences(run, history))
    samples = sample_rows(run, history, answers)
    data = {
        "start": {
            "name": _START[history.start],
            "val_loss": float(history.start_check.facts["val_loss"]) if history.start_check else verdict.start_loss,
        },
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
        warnings=find_warnings(history, rows, read_repeats(run)),
        tiles=_tiles(history, verdict),
        iterations=[_iteration_row(history, number) for number in range(len(history.iterations))],
        warm_up=_warm_up(history),
        controls=compare_controls(run, history),
        held_out=_held_out(history),
        evaluation=_evaluation(history),
        origins=lineage.origins(history),
        costs=lineage.costs(history, sum(each.num_trained_tokens for each in answers)),
        settings=lineage.settings_tables(history),
    )


def render(template: str, *, scripts: tuple[str, ...], data: Any, folder: Path = TEMPLATES, **names: Any) -> str:
    """Render a template to a page with embedded styles, scripts and data.

    The page's content security policy allows only these scripts and styles, by digest, and no requests.

    Args:
        template: file name of the template, in `folder` or in this package's templates.
        scripts: file names of scripts, in order of execution; searched in the same folders.
        data: JSON value for the scripts.
        folder: folder of the template.
        names: variables of the template; text is escaped.
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
    """Serialize JSON for a script element, with `<`, `>`, `&` and JavaScript line separators escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _joined(names: tuple[str, ...], folder: Path) -> str:
    paths = (folder / name if (folder / name).exists() else TEMPLATES / name for name in names)
    return "\n" + "\n".join(path.read_text("utf-8") for path in paths)


def _source(content: str) -> str:
    """Source expression of a script or style in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _nats(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def _tiles(history: History, verdict: Any) -> list[tuple[str, str, str]]:
    """Key figures, each with name, value and a value to compare with."""
    published = [iteration.published for iteration in history.published if iteration.published]
    manifests = list(history.manifests())
    tiles = []
    if verdict.compared is not None:
        start = _START[history.start]
        where = "" if verdict.compared == verdict.iteration else f"iteration {verdict.compared}, "
        tiles += [
            ("val_loss", _nats(verdict.compared_loss), f"{where}{start} {_nats(verdict.start_loss)}"),
            ("perplexity", perplexity(verdict.compared_loss), f"{where}{start} {perplexity(verdict.start_loss)}"),
        ]
        if difference := verdict.difference:
            share = percent(difference.num_better / difference.num_answers)
            counts = f"{difference.num_better} of {difference.num_answers}"
            tiles.append(("held-out answers with lower loss", share, counts))
    if published:
        facts = published[-1].facts
        tiles.append(("reward accuracy", _nats(facts["acc"], 2), f"last step of iteration {facts['iteration']}"))
    num = len(history.published)
    detail = f"{num} of {history.settings['spin']['max_iterations']} iterations"
    return [*tiles, ("compute time", lineage.duration(lineage.total_s(manifests)), detail)]


_START = {layout.BASE: "base", layout.WARM_UP: "warm-up"}
"""Short names of the models that self-play may begin from."""


def _warm_up(history: History) -> dict[str, Any] | None:
    """Row of the warm-up in the table of iterations; None where there is none, or it is not finished."""
    warmed = history.warm_up
    if warmed is None or warmed.published is None:
        return None
    manifests = [each.trained for each in warmed.epochs]
    manifests += [check for each in warmed.epochs if (check := each.check)]
    facts = warmed.published.facts
    kept = "the base model" if facts["epoch"] is None else f"epoch {facts['epoch'] + 1}"
    return {"facts": facts, "kept": f"{kept} of {len(facts['epochs'])} kept", "work_s": lineage.total_s(manifests)}


def _iteration_row(history: History, number: int) -> dict[str, Any]:
    """Row of the table of iterations, for a finished or unfinished iteration."""
    iteration = history.iterations[number]
    manifests = [m for pair in iteration.shards for m in pair if m]
    manifests += [m for epoch in iteration.epochs for m in (epoch.trained, epoch.check) if m]
    facts, counts = iteration.published.facts if iteration.published else {}, iteration.pair_counts
    return {
        "number": number,
        "facts": facts,
        "decision": _decision(facts),
        "num_pairs": counts.num_pairs or iteration.num_pairs,
        "num_dropped": counts.num_dropped,
        "about_pairs": about_pairs(number, counts),
        "num_steps": sum(int(epoch.trained.facts["num_steps"]) for epoch in iteration.epochs),
        "work_s": lineage.total_s(manifests),
    }


def about_pairs(iteration: int, counts: PairCounts) -> str:
    """Describe pairs of earlier iterations and dropped pairs; empty if there are neither."""
    text, dropped, earlier_dropped = "", in_words(counts.dropped), in_words(counts.history_dropped)
    if counts.num_history:
        earlier = ", ".join(f"{n:,} of iteration {t}" for t, n in counts.num_by_origin.items() if t != iteration)
        own = f"{counts.num_pairs - counts.num_history:,} pairs of its own"
        text = f"Iteration {iteration} trains on {own}, {earlier}; all scored under its own reference."
    if earlier_dropped:
        text += f" Dropped of the earlier pairs: {earlier_dropped}."
    if dropped:
        text += f" Dropped of iteration {iteration}'s own: {dropped}."
    if counts.num_triplets is not None:
        text += (
            f" Of iteration {iteration}'s {counts.num_pairs:,} pairs, {counts.num_triplets:,} have a third answer, of "
            "iteration 0; the others have no historical term."
        )
    return text.strip()


def _decision(facts: dict[str, Any]) -> str:
    """Outcome of an iteration and the decision that followed."""
    outcome, decision = word_of(facts.get("outcome", "")), word_of(facts.get("decision", "not finished"))
    if decision == "roll_back":
        decision = f"rolled back to {name_of(facts['next'])}"
    return decision if outcome in ("", decision) else f"{outcome}, {decision}"


def _held_out(history: History) -> list[tuple[str, dict[str, Any]]]:
    """Models with sampled answers to held-out prompts, by name, with the facts of their validations."""
    checks = [("base", history.base), *([("warm-up", history.warm_up.check)] if history.warm_up else [])]
    checks += [(f"iteration {it.number}", it.check) for it in history.published]
    checks += [(name_of(it.number).removeprefix("the "), it.check) for it in history.controls.values()]
    return [(name, check.facts) for name, check in checks if check and check.facts.get("num_samples")]


def _evaluation(history: History) -> dict[str, Any] | None:
    """Table of evaluated models: `models`, `rows` of a name and cells, `remarks`; None if there are none."""
    manifests = [
        ("base", history.base_evaluated),
        ("warm-up", history.warm_up.evaluated if history.warm_up else None),
        *((f"iteration {it.number}", it.evaluated) for it in history.iterations),
        *((name_of(it.number).removeprefix("the "), it.evaluated) for it in history.controls.values()),
    ]
    models = [(name, manifest.facts) for name, manifest in manifests if manifest]
    if not models:
        return None
    names, cells = evaluation_rows([facts for _, facts in models])
    return {
        "models": [name for name, _ in models],
        "rows": list(zip(names, cells, strict=True)),
        "remarks": [f"{name}, {remark}" for name, facts in models for remark in remarks(facts)],
    }


logger = logging.getLogger(__name__)


def refresh(run: RunStore, warn: Callable[[str], None]) -> None:
    """Write the run's report, unless an equal one exists.

    Args:
        run: the run.
        warn: called with a message if the report cannot be written.
    """
    started = time.monotonic()
    try:
        page = build_page(run).encode("utf-8", "replace")
        if run.read(layout.REPORT) != page:
            with run.staged(layout.REPORT) as staged:
                staged.path.write_bytes(page)
        logger.info("report of %.1f MB in %.1f s", len(page) / 1e6, time.monotonic() - started)
    except Exception as error:  # of any kind: the run goes on without its report
        logger.warning("the report could not be written", exc_info=True)
        warn(f"the report could not be written ({type(error).__name__}: {error}); see `spin-pipeline report`")
