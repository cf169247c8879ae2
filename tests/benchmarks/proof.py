"""Self-play and its variants against more supervised fine-tuning, from a warm-up that has stopped paying.

    python tests/benchmarks/proof.py [--sources NAME ...] [--only NAME ...] [--iterations 3] [--pairs 64]
        [--folder FOLDER] [--set NAME=VALUE ...] [--json FILE]

Two sources of questions with human answers: docstrings of Python's standard library (`builtin:stdlib-docstrings`), and
the parameters of `transformers` configurations with their descriptions. For each, demo.toml is run with a warm-up that
ends by its own patience, self-play after it, and a control of as many updates of fine-tuning; then every variant from
the same warm-up, on the same pairs' prompts with the same number of updates. What is compared is the last iteration
with the warm-up and with the last control, on the same held-out prompts, by paired bootstrap over answers. Runs in
FOLDER that are finished are not run again.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spin_components.algorithm.batching import permutation
from spin_components.data.shards import AnswerLoss
from spin_components.record.answer_measures import COLUMNS, read_measures, values_of
from spin_components.record.bootstrap import Difference, paired_change, paired_difference
from spin_components.record.controls import interval
from spin_components.record.decisions import word_of
from spin_components.record.history import IterationHistory, read_history
from spin_components.report.series import read_losses
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.open import open_run

Row = dict[str, Any]
FIRST = "SPIN, beta 0.1"
VARIANTS: dict[str, dict[str, Any]] = {
    FIRST: {},
    "SPIN, beta 1": {"spin.ref_policy_kl_penalty": 1.0},
    "SPIN, sft_weight 1": {"objective.sft_weight": 1.0},
    "SPIN a token, beta 2": {"objective.length_normalized": True, "spin.ref_policy_kl_penalty": 2.0},
    "SPACE, beta 1": {"objective.loss": "nce", "spin.ref_policy_kl_penalty": 1.0},
    "T-SPIN": {"objective.loss": "triplet", "spin.history": 0},
}
"""The first has the warm-up and the control; the others begin with its warm-up. Rewards a token are tens of times
smaller than those of whole answers, so their beta is larger (SimPO has 2, arXiv:2405.14734)."""

_COMMON = {
    "spin.ref_policy_kl_penalty": 0.1,
    "selection.on_regression": "continue",
    "selection.patience": 0,
    "selection.save_top_k": -1,
    "training.lr": 5e-6,
    "warm_up.max_epochs": 0,
    "control.sft": False,
}
_WARM_UP = {"warm_up.max_epochs": 8, "control.sft": True}
_SYSTEM = {"stdlib-docstrings": "You document Python.", "parameters": "You document models."}
_PARAMETER = re.compile(r"^ {4,8}(\w+) \(`[^`]+`[^)]*\):\n((?: {8,}\S.*\n?)+)", re.MULTILINE)
_HEAD = """\
| variant | verdicts | NLL | NLL against the warm-up | chrF against the warm-up | NLL against the control \
| chrF against the control | length | ended | repetition | minutes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


@dataclass(frozen=True, slots=True)
class Model:
    """Losses of held-out answers and measures of a model's own, with their means.

    Attributes:
        losses: of the human answers.
        values: by measure (`record.answer_measures.COLUMNS`) and the prompt's index.
        facts: of the validation: `val_loss` and means of the measures.
    """

    losses: list[AnswerLoss]
    values: dict[str, dict[int, float]]
    facts: Mapping[str, Any]

    def changes(self, before: Model) -> dict[str, Difference | None]:
        """Paired changes from another model, by measure."""
        return {"nll": paired_difference(before.losses, self.losses)} | {
            name: paired_change(before.values[name], self.values[name]) for name in COLUMNS
        }


def parameters() -> Iterator[tuple[str, str]]:
    """Questions about parameters of `transformers` configurations and their descriptions, from its source."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the source `parameters` needs the package transformers")
    seen: set[str] = set()
    for path in sorted((Path(spec.submodule_search_locations[0]) / "models").rglob("configuration_*.py")):
        for node in ast.parse(path.read_bytes()).body:
            if not isinstance(node, ast.ClassDef):
                continue
            for name, text in _PARAMETER.findall(ast.get_docstring(node, clean=False) or ""):
                answer = " ".join(text.split())
                if 40 <= len(answer) <= 240 and answer[0].isupper() and answer.endswith(".") and answer not in seen:
                    seen.add(answer)
                    yield f"What is the parameter `{name}` of `{node.name}`?", answer


def write_parameters(path: Path) -> Path:
    """Write the pairs of `parameters` as JSONL, shuffled with a fixed seed."""
    pairs = list(parameters())
    with path.open("w", encoding="utf-8") as file:
        for index in permutation(len(pairs), seed=0):
            question, answer = pairs[index]
            turns = {"system": _SYSTEM["parameters"], "user": question, "assistant": answer}
            messages = [{"role": role, "content": text} for role, text in turns.items()]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Start a run, or go on with what is there of one."""
    command = ["spin-pipeline", "run", "--config", "demo", "--run-uri", str(folder)]
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={_toml(value)}")]
    if code := subprocess.run([*command, *given], stdout=sys.stderr).returncode:
        raise SystemExit(f"{folder} ended with {code}")


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_model(run: RunStore, model: IterationHistory) -> Model:
    """Read a published model's validation."""
    if model.check is None:
        raise SystemExit(f"{run.uri}: iteration {model.number} is not validated")
    rows = read_measures(run, model.number, model.published_epoch or 0)
    return Model(
        read_losses(run, model.check), {name: values_of(rows, name) for name in COLUMNS}, dict(model.check.facts)
    )


def prove(
    root: Path, source: str, names: list[str], given: dict[str, str], num_iterations: int
) -> list[dict[str, Any]]:
    """Run a source's variants and compare their last iterations with the warm-up and the control."""
    data = {} if source == "stdlib-docstrings" else {"data.train": str(write_parameters(root / f"{source}.jsonl"))}
    common = _COMMON | data | {"spin.max_iterations": num_iterations} | given
    first = root / source / "0"
    run(first, common | _WARM_UP | VARIANTS[FIRST])
    with open_run(str(first)) as store:
        history = read_history(store)
        if history.warm_up is None or history.start != layout.WARM_UP:
            raise SystemExit(f"{first}: no epoch of the warm-up was better than the base model")
        start = read_model(store, history.warm_up)
        control = read_model(store, history.controls[num_iterations - 1])
    rows = [_row(source, "warm-up", start, {}), _row(source, "control", control, {"warm-up": control.changes(start)})]
    warm = root / source / "warm-up"
    if not warm.exists():
        subprocess.run(["spin-pipeline", "export", "--iteration", "warm-up", str(first), str(warm)], check=True)
    for name in names:
        folder = root / source / str(list(VARIANTS).index(name))
        if name != FIRST:
            run(folder, common | {"model.base": str(warm)} | VARIANTS[name])
        with open_run(str(folder)) as store:
            history = read_history(store)
            last = history.published[-1]
            model = read_model(store, last)
            changes = {"warm-up": model.changes(start), "control": model.changes(control)}
            words = [word_of(str(each.published.facts["outcome"])) for each in history.published if each.published]
        minutes = sum(map(_seconds, history.published)) / 60
        rows.append(_row(source, name, model, changes) | {"verdicts": words, "minutes": minutes})
    return rows


def _seconds(iteration: IterationHistory) -> float:
    """Time in an iteration's steps."""
    made = [each for shard in iteration.shards for each in shard]
    made += [each for epoch in iteration.epochs for each in (epoch.trained, epoch.check)]
    return sum(each.duration_s for each in [*made, iteration.published] if each)


def _row(
    source: str, name: str, model: Model, changes: Mapping[str, Mapping[str, Difference | None]]
) -> dict[str, Any]:
    plain = {
        against: {measure: asdict(change) if change else None for measure, change in found.items()}
        for against, found in changes.items()
    }
    return {"source": source, "name": name, "facts": dict(model.facts), "changes": plain}


def table(rows: list[Row]) -> str:
    """The rows of one source as Markdown."""
    lines = [_HEAD]
    for row in rows:
        facts = row["facts"]
        cells = [
            row["name"],
            ", ".join(row.get("verdicts", [])) or "–",
            f"{facts['val_loss']:.3f}",
            *(_cell(row, against, name) for against in ("warm-up", "control") for name in ("nll", "chrf")),
            *(_number(facts, name) for name in ("length_ratio", "ended_share", "repetition_rate")),
            f"{row['minutes']:.1f}" if "minutes" in row else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], against: str, name: str) -> str:
    change = row["changes"].get(against, {}).get(name)
    return interval(Difference(**change)) if change else "–"


def _number(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get(name)
    return "–" if value is None else f"{value:.2f}"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sources", nargs="+", choices=list(_SYSTEM), default=list(_SYSTEM), metavar="NAME")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=64, help="of an iteration")
    parser.add_argument("--folder", type=Path, help="for the runs, to stay; default: one that goes")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="in all runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    given = {"data.max_train_records": str(options.pairs)} | dict(each.split("=", 1) for each in options.set)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as made:
        root = options.folder or Path(made)
        root.mkdir(parents=True, exist_ok=True)
        for source in options.sources:
            rows = prove(root, source, options.only, given, options.iterations)
            sys.stdout.write(f"\n{source}\n\n{table(rows)}\n")
            sys.stdout.flush()
            found += rows
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
