from __future__ import annotations

import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from spin_components.data.shards import DocumentValue, Judgment, write_rows
from spin_components.harness.tasks import document_values
from spin_components.record.bootstrap import Difference, UnpairedDifference
from spin_components.record.evaluated import Evaluated, change_of, read_evaluated, title_of
from spin_components.store import layout
from spin_components.store.digests import digest_file
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest


def evaluate(run: LocalRun, iteration: int, facts: dict[str, Any], files: dict[str, list[Any]]) -> None:
    """Store an evaluation."""
    outputs = {}
    for key, rows in files.items():
        path = run.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, type(rows[0]), rows)
        outputs[key] = digest_file(path)
    manifest = Manifest(step="evaluate", inputs={}, outputs=outputs, facts=facts)
    run.write_json(layout.evaluation(iteration), manifest.model_dump(mode="json"))


def task_facts(**metrics: tuple[float | None, float | None, bool | None]) -> dict[str, Any]:
    names = ("value", "stderr", "higher_is_better")
    figures = {name: dict(zip(names, numbers, strict=True)) for name, numbers in metrics.items()}
    return {"tasks": {"results": {"arc": {"num_documents": 8, "metrics": figures}}}}


def test_the_judges_scores_are_read_by_answer(tmp_path: Path) -> None:
    run = LocalRun(tmp_path / "run")
    rows = [Judgment(3, "Score: 4", 4.0), Judgment(5, "no", None), Judgment(9, "Score: 6", 6.0)]
    facts = {"judge": {"mean": 5.0, "stderr": 1.0, "num_scored": 2, "num_unparsed": 1}}
    evaluate(run, layout.WARM_UP, facts, {layout.judge_scores(layout.WARM_UP): rows})
    expected = Evaluated("judge score", 5.0, 1.0, 2, True, {3: 4.0, 9: 6.0})
    assert read_evaluated(run, layout.WARM_UP, "judge") == expected
    assert read_evaluated(run, layout.WARM_UP, "task:arc") is None
    assert read_evaluated(run, 0, "judge") is None
    assert read_evaluated(run, layout.WARM_UP, "nll") is None


def test_a_tasks_first_metric_or_the_one_that_is_named_is_read_by_document(tmp_path: Path) -> None:
    run, key = LocalRun(tmp_path / "run"), layout.document_values(0)
    rows = [
        DocumentValue("arc", "acc", 0, 1.0),
        DocumentValue("arc", "acc", 1, 0.0),
        DocumentValue("boolq", "acc", 0, 1.0),
    ]
    evaluate(run, 0, task_facts(acc=(0.5, 0.1, True), ppl=(9.0, None, False)), {key: rows})
    assert read_evaluated(run, 0, "task:arc") == Evaluated("arc acc", 0.5, 0.1, 8, True, {0: 1.0, 1: 0.0})
    assert read_evaluated(run, 0, "task:arc/ppl") == Evaluated("arc ppl", 9.0, None, 8, False, {})
    assert read_evaluated(run, 0, "task:arc/f1") is None
    assert read_evaluated(run, 0, "task:boolq") is None


def test_an_earlier_releases_evaluation_has_no_documents_and_no_direction(tmp_path: Path) -> None:
    run = LocalRun(tmp_path / "run")
    facts = task_facts(acc=(0.5, 0.1, None))
    del facts["tasks"]["results"]["arc"]["metrics"]["acc"]["higher_is_better"]
    evaluate(run, 0, facts, {})
    assert read_evaluated(run, 0, "task:arc") == Evaluated("arc acc", 0.5, 0.1, 8, None, {})


def values(mean: float, stderr: float | None, num: int, documents: dict[int, float] | None = None) -> Evaluated:
    return Evaluated("arc acc", mean, stderr, num, True, documents or {})


def test_changes_are_paired_where_documents_are_known_and_by_standard_errors_elsewhere() -> None:
    low, high = dict.fromkeys(range(8), 0.25), dict.fromkeys(range(8), 0.75)
    assert change_of(values(0.25, 0.1, 8, low), values(0.75, 0.1, 8, high), 0.95) == Difference(0.5, 0.5, 0.5, 8, 8)
    # sqrt(0.3^2 + 0.4^2) = 0.5, and 1.96 of it on both sides; eight operations in float64 on numbers below 2
    half, rounding = 0.5 * NormalDist().inv_cdf(0.975), 8 * 2 * sys.float_info.epsilon
    change = change_of(values(0.25, 0.3, 8), values(0.75, 0.4, 9, high), 0.95)
    assert isinstance(change, UnpairedDifference)
    assert (change.mean, change.num_better, change.num_answers) == (0.5, 0, 8)
    assert (change.low, change.high) == pytest.approx((0.5 - half, 0.5 + half), rel=0, abs=rounding)
    assert change_of(values(0.25, None, 8), values(0.75, 0.4, 8), 0.95) is None
    assert change_of(values(0.25, 0.3, 7), values(0.75, 0.4, 8), 0.95) is None, "8 are needed"
    assert change_of(values(0.25, 0.3, 7, {0: 0.25}), values(0.75, 0.4, 8, high), 0.95) is None


def test_documents_have_values_of_metrics_that_are_their_mean() -> None:
    def sample(index: int, kind: str = "none", **metrics: Any) -> dict[str, Any]:
        return {"doc_id": index, "filter": kind, "metrics": list(metrics), **metrics}

    logged = [
        sample(0, acc=1.0, perplexity=-1.0, f1=(0, 1)),
        sample(1, acc=0, perplexity=-3.0, f1=(1, 1)),
        sample(0, "strict", exact_match=True),
        sample(1, "strict", exact_match=False),
    ]
    figures = {
        "arc": {
            "metrics": {
                "acc": {"value": 0.5},
                "perplexity": {"value": 7.39},
                "f1": {"value": 0.5},
                "exact_match,strict": {"value": 0.5},
            }
        }
    }
    assert document_values({"arc": logged}, figures) == [
        DocumentValue("arc", "acc", 0, 1.0),
        DocumentValue("arc", "acc", 1, 0.0),
        DocumentValue("arc", "exact_match,strict", 0, 1.0),
        DocumentValue("arc", "exact_match,strict", 1, 0.0),
    ]


def test_measures_have_names_for_people() -> None:
    assert [title_of(name) for name in ("nll", "chrf", "judge", "task:arc", "task:gsm8k/exact_match,strict")] == [
        "val_loss",
        "chrf",
        "judge score",
        "arc",
        "gsm8k exact_match,strict",
    ]
