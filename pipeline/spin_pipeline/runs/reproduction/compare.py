"""Compares the records of a run and its reproduction, step by step in the order of the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from spin_components.data.shards import Pair, Prompt, Score
from spin_components.record.history import History, IterationHistory
from spin_components.report.series import read_steps
from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import Manifest
from spin_pipeline.runs.reproduction.columns import Array, Columns, common, differing, index_of, read_columns
from spin_pipeline.runs.reproduction.differences import DATA_ROW, Measure, ReproductionResult, format_pair

_STEP_METRICS: dict[str, Measure] = {
    "loss": "loss",
    "rewards_actual_mean": "rewards",
    "rewards_generated_mean": "rewards",
    "sft_loss": "loss",
    "current_advantage_mean": "rewards",
    "historical_advantage_mean": "rewards",
    "grad_norm": "grad norm",
    "val_loss": "val_loss",
}
_DECISION_FIELDS = ("epoch", "outcome", "best", "decision", "next")
_END_FIELDS = ("decision", "next")


def compare(
    old_run: RunStore, old: History, new_run: RunStore, new: History, num_iterations: int
) -> ReproductionResult:
    """Compare two runs.

    Steps that only the new run has are ignored; steps that only the recorded run has are mismatches.

    Args:
        old_run, old: the recorded run.
        new_run, new: the reproduction.
        num_iterations: number of iterations to compare.

    Raises:
        IntegrityError: a recorded file of either run is missing or altered.
    """
    return _Comparer(old_run, old, new_run, new, num_iterations).run()


class _Comparer:
    """Compares two runs and collects the mismatches."""

    def __init__(self, old_run: RunStore, old: History, new_run: RunStore, new: History, num_iterations: int) -> None:
        self._old_run, self._old, self._new_run, self._new = old_run, old, new_run, new
        self._num_iterations = num_iterations
        self._result = ReproductionResult()
        self._other_answers: Array = np.zeros(0, dtype=np.int64)  # keys of the pairs whose answers differ
        self._old_steps, self._new_steps = _by_epoch(old_run, old), _by_epoch(new_run, new)

    def run(self) -> ReproductionResult:
        self._data()
        if self._old.base:
            self._validation(layout.BASE, "the base model", self._old.base, self._new.base)
        for t in range(self._num_iterations):
            there = self._old.iterations[t]
            here = self._new.iterations[t] if t < len(self._new.iterations) else IterationHistory(t, [], [], None)
            self._answers(there, here)
            self._training(there, here)
            self._decision(there, here)
        return self._result

    def _data(self) -> None:
        """Compare the base model, the data and the rendered shards."""
        inputs = [history.data.inputs for history in (self._old, self._new)]
        for name in ("model.base (content)", *(f"data.{name} (content)" for name in self._old.record["data"])):
            self._result.count(DATA_ROW, "data")
            if inputs[0].get(name) != inputs[1].get(name):
                self._result.add(DATA_ROW, "data", "fixed", "inputs", f"{name} differs")
        for key in sorted(self._old.data.outputs):
            content = ("prompt_ids", "actual_ids", "actual_ended")
            columns = self._columns(self._old.data, self._new.data, key, Prompt, content=content)
            self._result.count(DATA_ROW, "data")
            if columns is None:
                continue
            if num := len(differing(*columns, "content")):
                what = f"{num} of {len(columns[0].keys)} records differ"
                self._result.add(DATA_ROW, "data", "fixed", key, what, num)

    def _answers(self, old: IterationHistory, new: IterationHistory) -> None:
        """Compare the generations and their scores, shard by shard."""
        here = {next(iter(made.outputs)): (made, scored) for made, scored in new.shards}
        for made, scored in old.shards:
            key = next(iter(made.outputs))
            shard = int(key.rpartition("/")[2].removesuffix(".parquet"))
            where = f"iteration {old.number}, generations shard {shard}"
            if key not in here:
                self._missing(old.number, "answers", where)
                continue
            self._generations(old.number, where, made, here[key][0])
            where = f"iteration {old.number}, ref-logprobs shard {shard}"
            if scored and (again := here[key][1]):
                self._scores(old.number, where, scored, again)
            elif scored:
                self._missing(old.number, "log-probs", where)

    def _generations(self, t: int, where: str, old: Manifest, new: Manifest) -> None:
        self._result.count(t, "answers", int(old.facts["num_pairs"]))
        content, numbers = ("generated_ids", "finish_reason"), ("sampled_logprob",)
        key = next(iter(old.outputs))
        columns = self._columns(old, new, key, Pair, content=content, numbers=numbers)
        if columns is None:
            return
        other = differing(*columns, "content")
        if len(other):
            self._other_answers = np.union1d(self._other_answers, other)
            what = f"{len(other)} of {len(columns[0].keys)} answers differ"
            self._result.add(t, "answers", "exact", where, what, len(other))
        there, here = (each.without(other) for each in columns)
        self._logprobs(t, where, "the sampler's log-probability of answer", there, here, "sampled_logprob")

    def _scores(self, t: int, where: str, old: Manifest, new: Manifest) -> None:
        """Compare the scores of the pairs that both have, except generated answers that differ."""
        self._result.count(t, "log-probs", int(old.facts["num_pairs"]))
        numbers, key = ("ref_actual", "ref_generated", "batch"), next(iter(old.outputs))
        columns = self._columns(old, new, key, Score, numbers=numbers)
        if columns is None:
            return
        there, here = columns
        if num := len(np.setxor1d(there.keys, here.keys)):
            self._result.add(t, "log-probs", "exact", where, f"{num} pairs are in only one of the runs", num)
        self._logprobs(t, where, "log-prob of the human answer of pair", there, here, "ref_actual")
        alike, alike_here = (each.without(self._other_answers) for each in columns)
        self._logprobs(t, where, "log-prob of the generated answer of pair", alike, alike_here, "ref_generated")
        if not num and (num := len(differing(there, here, "batch"))):
            self._result.add(t, "log-probs", "exact", where, f"{num} pairs are in other batches", num)

    def _logprobs(self, t: int, where: str, name: str, old: Columns, new: Columns, column: str) -> None:
        """Add one mismatch for all pairs that both have, with the greatest difference."""
        keys, values, new_values = common(old, new, column)
        if num := int((values != new_values).sum()):
            differences = np.abs(values - new_values)
            place = int(differences.argmax())
            pair = format_pair(float(values[place]), float(new_values[place]))
            more = f", the greatest of {num} differences" if num > 1 else ""
            what = f"{name} {index_of(int(keys[place]))} {pair}{more}"
            self._result.add(t, "log-probs", "number", where, what, float(differences[place]))

    def _training(self, old: IterationHistory, new: IterationHistory) -> None:
        """Compare training steps, weights and validation, epoch by epoch."""
        for there in old.epochs:
            where = f"iteration {old.number}, epoch {there.number}"
            if there.number >= len(new.epochs):
                self._missing(old.number, "loss", where)
                break
            here, epoch = new.epochs[there.number], (old.number, there.number)
            self._steps(old.number, where, self._old_steps[epoch], self._new_steps[epoch])
            folder = f"{layout.epoch(*epoch)}/policy"
            weights = [_weights(manifest, folder) for manifest in (there.trained, here.trained)]
            self._result.count(old.number, "weights")
            if weights[0] != weights[1]:
                self._result.add(old.number, "weights", "exact", where, "the trained weights differ")
            if there.check:
                self._validation(old.number, where, there.check, here.check)

    def _steps(self, t: int, where: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
        for there, here in zip(old, new, strict=False):
            step = f"iteration {t}, step {there['step']}"
            for name, measure in _STEP_METRICS.items():
                if name in there or name in here:
                    self._result.compare(t, measure, step, name, there.get(name), here.get(name))
            if there["lr"] != here["lr"]:
                self._result.add(t, "loss", "fixed", step, f"lr {format_pair(there['lr'], here['lr'])}")
        if len(old) != len(new):
            self._result.add(t, "loss", "fixed", where, f"{len(old)} steps against {len(new)}")

    def _validation(self, row: int, where: str, old: Manifest, new: Manifest | None) -> None:
        if new is None:
            self._missing(row, "val_loss", f"{where}, validation")
            return
        for name in ("val_loss", "spin_margin"):
            if name in old.facts or name in new.facts:
                measure: Measure = "val_loss" if name == "val_loss" else "rewards"
                numbers = (old.facts.get(name), new.facts.get(name))
                self._result.compare(row, measure, f"{where}, validation", name, *numbers)

    def _decision(self, old: IterationHistory, new: IterationHistory) -> None:
        """Compare the decisions; the last reproduced iteration may end the run although the recorded one did not."""
        if old.published is None:
            return
        self._result.count(old.number, "decision")
        where = f"iteration {old.number}, decision"
        if new.published is None:
            self._missing(old.number, "decision", where)
            return
        there, here = old.published.facts, new.published.facts
        ends_here = old.number + 1 == self._num_iterations and here.get("decision") == "done"
        for name in _DECISION_FIELDS:
            if there.get(name) != here.get(name) and not (ends_here and name in _END_FIELDS):
                what = f"{name} {there.get(name)} against {here.get(name)}"
                self._result.add(old.number, "decision", "fixed", where, what)

    def _missing(self, row: int, measure: Measure, where: str) -> None:
        self._result.count(row, measure)
        self._result.add(row, measure, "fixed", where, "recorded, but not reproduced")

    def _columns(
        self,
        old: Manifest,
        new: Manifest,
        key: str,
        kind: type[Prompt | Pair | Score],
        *,
        content: Sequence[str] = (),
        numbers: Sequence[str] = (),
    ) -> tuple[Columns, Columns] | None:
        """Columns of a file in both runs, see `read_columns`; None if its digests are equal."""
        if key in new.outputs and old.outputs[key] == new.outputs[key]:
            return None
        columns: list[Columns] = []
        for run, manifest in ((self._old_run, old), (self._new_run, new)):
            files = {key: manifest.outputs[key]} if key in manifest.outputs else {}
            folder = run.fetch(files, what=f"the output of {manifest.step}") if files else None
            columns.append(read_columns(folder / key if folder else None, kind, content=content, numbers=numbers))
        return columns[0], columns[1]


def _by_epoch(run: RunStore, history: History) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Metrics of the training steps, by iteration and epoch."""
    steps: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in read_steps(run, history):
        steps[int(row["iteration"]), int(row["epoch"])].append(row)
    return steps


def _weights(trained: Manifest, folder: str) -> dict[str, str]:
    """Digests of the weights; other files of the policy may contain the run's address."""
    files = trained.outputs_below(folder)
    return {name: file.sha256 for name, file in files.items() if name.endswith(".safetensors")}
