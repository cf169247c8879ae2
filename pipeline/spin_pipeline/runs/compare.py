"""Compares several runs: settings, results, and warnings where the results are not comparable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spin_components.data.shards import AnswerMeasures
from spin_components.errors import ConfigError
from spin_components.record.answer_measures import COLUMNS, read_measures, values_of
from spin_components.record.bootstrap import Difference, paired_change, paired_difference
from spin_components.record.controls import compare_controls, interval, verdicts
from spin_components.record.history import History, read_history
from spin_components.report.lineage import duration, total_s
from spin_components.report.page import render
from spin_components.report.series import read_losses
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.open import open_run
from spin_pipeline.runs.evaluated_best import evaluated_best, evaluated_change

_NOT_COMPARED = ("run.name", "run.uri")


_TEMPLATES = Path(__file__).parent / "template"


_SCRIPTS = ("theme.js", "chart.js", "plots.js", "compare.js")


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """Results of one run.

    Attributes:
        label: short name, unique among the compared runs.
        base_loss: val_loss of the base model.
        losses: val_loss by iteration, without losses that are not finite.
        num_iterations: number of published iterations.
        best: iteration of the best model, -1 for the base model; None before an iteration is published.
        acc, margin: of the best iteration.
        from_base: paired change of val_loss from the base model to the best iteration; None if the base model is best.
        from_first: the same from the first run's best model; None if the runs have other validation answers.
        answers_from_first: paired changes of the measures of `record.answer_measures` from the first run's best model;
            and of the measure of the evaluation that decides, where both were evaluated alike.
        falling: that measure's name, where lower is better.
        warm_up_loss: val_loss of the warm-up; None without one.
        controls: the comparison of the last iteration with its control, in a sentence; empty without one.
        work_s: sum of the steps' durations in seconds.
        digests: SHA-256 of the `base model`, and of the rendered `training` and `validation` records.
    """

    label: str
    uri: str
    base_loss: float | None
    losses: dict[int, float]
    num_iterations: int
    best: int | None
    acc: float | None
    margin: float | None
    from_base: Difference | None
    from_first: Difference | None
    work_s: float
    digests: dict[str, str]
    answers_from_first: dict[str, Difference | None] = field(default_factory=dict)
    warm_up_loss: float | None = None
    controls: tuple[str, ...] = ()
    falling: tuple[str, ...] = ()

    @property
    def best_loss(self) -> float | None:
        """val_loss of the best model."""
        if self.best is None:
            return None
        starts = {layout.BASE: self.base_loss, layout.WARM_UP: self.warm_up_loss}
        return starts[self.best] if self.best in starts else self.losses[self.best]

    @property
    def best_name(self) -> str:
        """The best iteration and the number of iterations, e.g. `1 of 3`."""
        best = (
            {layout.BASE: "base", layout.WARM_UP: "warm-up"}.get(self.best, self.best)
            if self.best is not None
            else None
        )
        return "–" if best is None else f"{best} of {self.num_iterations}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of several runs.

    Attributes:
        runs: in the order given by the caller.
        settings: name and each run's value of the settings that differ.
        warnings: reasons why numbers may not be comparable.
    """

    runs: list[ComparedRun]
    settings: list[tuple[str, list[str]]]
    warnings: list[str]

    @property
    def sentences(self) -> list[str]:
        """For every run after the first, by which measures its best model is better or worse than the first's; then
        for every run with controls, whether self-play did better than they."""
        first = self.runs[0].label
        against = [
            f"{run.label} against {first}: "
            f"{'; '.join(verdicts({'val_loss': run.from_first, **run.answers_from_first}, run.falling))}."
            for run in self.runs[1:]
            if run.from_first
        ]
        return [*against, *(f"{run.label}: {sentence}" for run in self.runs for sentence in run.controls)]


def compare_runs(uris: Sequence[str]) -> Comparison:
    """Read runs and compare them.

    Raises:
        ConfigError: fewer than two addresses, the same address twice, or an address without a run.
        IntegrityError: stored files are damaged.
        StorageAccessError, StorageError: storage denies access, or does not answer.
    """
    if len(uris) < 2 or len({uri.rstrip("/") for uri in uris}) < len(uris):
        raise ConfigError(f"compare: expected two or more different runs, found {', '.join(uris) or 'none'}")
    histories, losses, answers, controls, evaluated = [], [], [], [], []
    for uri in uris:
        with open_run(uri) as run:
            histories.append(read_history(run))
            losses.append(_losses(run, histories[-1]))
            answers.append(_answers(run, histories[-1]))
            evaluated.append(evaluated_best(run, histories[-1]))
            controls.append(tuple(each.sentence for each in compare_controls(run, histories[-1])[-1:]))
    labels = _labels(histories)
    runs: list[ComparedRun] = []
    for label, history, (base, best), measures in zip(labels, histories, losses, answers, strict=True):
        comparable = _digests(history)["validation"] == _digests(histories[0])["validation"]
        first = losses[0][1] if comparable and runs else []
        compared = _compared(label, history, base, best, first)
        changes = {name: paired_change(values_of(answers[0], name), values_of(measures, name)) for name in COLUMNS}
        if change := evaluated_change(evaluated[0], evaluated[len(runs)]):
            changes[history.measure] = change
            compared = replace(compared, falling=evaluated[0].falling if evaluated[0] else ())
        compared = replace(compared, controls=controls[len(runs)])
        runs.append(replace(compared, answers_from_first=changes) if first else compared)
    return Comparison(runs, _differing(histories), _warnings(runs))


def _losses(run: RunStore, history: History) -> tuple[list[Any], list[Any]]:
    """val_loss of each held-out answer, of the base model and of the best model."""
    best, check = history.best, history.base
    if best is not None and best >= 0:
        check = history.iterations[best].check
    elif best == layout.WARM_UP:
        check = history.start_check
    return (read_losses(run, history.base) if history.base else []), (
        read_losses(run, check) if check and best is not None else []
    )


def _answers(run: RunStore, history: History) -> list[AnswerMeasures]:
    """Measures of the best model's answers."""
    best = history.best
    if best is None:
        return []
    source = history.iterations[best] if best >= 0 else history.warm_up if best == layout.WARM_UP else None
    return read_measures(run, best, source.published_epoch or 0 if source else 0)


def _compared(label: str, history: History, base: list[Any], best: list[Any], first: list[Any]) -> ComparedRun:
    number, facts = history.best, dict[str, Any]()
    is_iteration = number is not None and number >= 0
    if number is not None and is_iteration and (published := history.iterations[number].published):
        facts = published.facts
    rewards = (facts.get("rewards_actual_mean"), facts.get("rewards_generated_mean"))
    return ComparedRun(
        label=label,
        uri=history.uri,
        base_loss=history.base.facts["val_loss"] if history.base else None,
        losses={
            it.number: float(it.published.facts["val_loss"])
            for it in history.published
            if it.published and it.published.facts["val_loss"] is not None
        },
        num_iterations=len(history.published),
        best=number,
        acc=facts.get("acc"),
        margin=None if None in rewards else float(rewards[0]) - float(rewards[1]),  # type: ignore[arg-type]
        from_base=paired_difference(base, best) if base and best and number != layout.BASE else None,
        from_first=paired_difference(first, best) if first and best else None,
        work_s=total_s(history.manifests()),
        digests=_digests(history),
        warm_up_loss=history.start_check.facts["val_loss"]
        if history.start_check and history.start == layout.WARM_UP
        else None,
    )


def _digests(history: History) -> dict[str, str]:
    outputs = history.data.outputs
    training = {key: file.sha256 for key, file in outputs.items() if key != layout.VALIDATION}
    return {
        "base model": str(history.data.inputs["model.base (content)"]),
        "training": "".join(training[key] for key in sorted(training)),
        "validation": outputs[layout.VALIDATION].sha256,
    }


def _labels(histories: list[History]) -> list[str]:
    """Labels of the runs: their names if unique, else the last parts of their addresses, else the addresses."""
    for names in (
        [history.settings["run"]["name"] for history in histories],
        [history.uri.rpartition("/")[2] for history in histories],
    ):
        if len(set(names)) == len(names):
            return names
    return [history.uri for history in histories]


def _differing(histories: list[History]) -> list[tuple[str, list[str]]]:
    flat = [
        {f"{section}.{name}": value for section, table in history.settings.items() for name, value in table.items()}
        for history in histories
    ]
    names = list(dict.fromkeys(name for table in flat for name in table))
    rows = [(name, [_plain(table.get(name)) for table in flat]) for name in names if name not in _NOT_COMPARED]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _plain(value: object) -> str:
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _warnings(runs: list[ComparedRun]) -> list[str]:
    consequences = {
        "base model": "changes from the base are measured from different models",
        "training": "differences may be due to the data as well as to the settings",
        "validation": "val_loss was measured on different answers and cannot be compared",
    }
    warnings = []
    for name, consequence in consequences.items():
        others = [run.label for run in runs[1:] if run.digests[name] != runs[0].digests[name]]
        if others:
            noun = name if name == "base model" else f"{name} data"
            warnings.append(f"Other {noun} than {runs[0].label}: {', '.join(others)}; {consequence}.")
    unfinished = [run.label for run in runs if run.best is None]
    return [*warnings, *([f"No iteration finished yet: {', '.join(unfinished)}."] if unfinished else [])]


def comparison_page(comparison: Comparison) -> str:
    """The comparison as one self-contained HTML page."""
    runs = [{**asdict(run), "best_loss": run.best_loss} for run in comparison.runs]
    return render("compare.html", scripts=_SCRIPTS, data=runs, folder=_TEMPLATES, comparison=comparison)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the results of each run, the settings that differ, and the warnings."""
    table = _table("", *(run.label for run in comparison.runs))
    for name, cell in _measures(comparison.runs).items():
        table.add_row(name, *(Text(cell(run)) for run in comparison.runs))
    console.print()
    console.print(table)
    if any(run.from_base for run in comparison.runs):
        console.print("in brackets: 95 % confidence intervals, over the held-out answers", style="dim")
    console.print()
    for sentence in comparison.sentences:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if comparison.sentences:
        console.print()
    if comparison.settings:
        table = _table("setting", *(run.label for run in comparison.runs))
        for name, values in comparison.settings:
            table.add_row(Text(name), *(Text(value or '""') for value in values))
        console.print(table)
    else:
        console.print("no setting differs")
    console.print()
    for run in comparison.runs:
        console.print(f"{run.label}: {run.uri}", highlight=False, markup=False, soft_wrap=True)
    for warning in comparison.warnings:
        console.print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for index, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if index else "left")
    return table


def _measures(runs: Sequence[ComparedRun]) -> dict[str, Callable[[ComparedRun], str]]:
    return {
        "base val_loss": lambda run: _number(run.base_loss, 4),
        **(
            {"warm-up val_loss": lambda run: _number(run.warm_up_loss, 4)}
            if any(run.warm_up_loss is not None for run in runs)
            else {}
        ),
        "best val_loss": lambda run: _number(run.best_loss, 4),
        "best iteration": lambda run: run.best_name,
        "change from base": lambda run: _change(run.from_base),
        f"change from {runs[0].label}": lambda run: _change(run.from_first),
        "acc": lambda run: _number(run.acc, 2),
        "margin": lambda run: _number(run.margin, 3),
        "time in steps": lambda run: duration(run.work_s),
    }


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _change(change: Difference | None) -> str:
    return interval(change) if change else "-"
