"""lm-evaluation-harness on a small model and own task files, compared with log-probabilities computed without it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from spin_components.data.shards import DocumentValue
from spin_components.errors import ConfigError, DataError, EngineError
from spin_components.harness.task_files import check_task_files
from spin_components.harness.tasks import find_tasks, run_tasks
from spin_components.model.compute import Compute
from spin_components.model.folder import load_tokenizer
from spin_components.model.loading import load_model
from spin_components.settings.attempt import EvaluationSettings
from spin_components.settings.run import ModelSettings
from support.small import small_settings
from support.task_folder import CHOICE, write_tasks

QUESTIONS = ["Return the name of", "The file is closed", "A list of all", "Raise an error if"]
CHOICES = ["the module", "a new string"]


class Scorer:
    """Scores with the model directly, without the harness and the project's own scoring."""

    def __init__(self, folder: Path) -> None:
        settings = ModelSettings(base="x")
        self._model, self._tokenizer = load_model(folder, settings).eval(), load_tokenizer(folder, settings)

    def _logprobs(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self._model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return logits.log_softmax(-1)

    def preferred(self, question: str) -> int:
        """Index of the choice with the higher log-probability after the question and a space."""
        start = self._tokenizer(question).input_ids
        sums = []
        for choice in CHOICES:
            ids = self._tokenizer(f"{question} {choice}").input_ids
            assert ids[: len(start)] == start
            logprobs = self._logprobs(ids)
            sums.append(sum(float(logprobs[index - 1, ids[index]]) for index in range(len(start), len(ids))))
        assert abs(sums[0] - sums[1]) > 1e-3, "too close to tell by"
        return max((0, 1), key=sums.__getitem__)

    def continuation(self, question: str, num_tokens: int = 4) -> str:
        """Greedy continuation of a question."""
        start = self._tokenizer(question).input_ids
        ids = list(start)
        for _ in range(num_tokens):
            ids.append(int(self._logprobs(ids)[-1].argmax()))
        assert self._tokenizer.eos_token_id not in ids
        text: str = self._tokenizer.decode(ids[len(start) :])
        return text


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Folder of tasks: three of four gold choices and one of two target texts are the model's own."""
    scorer = Scorer(tiny_llama)
    gold = [scorer.preferred(question) for question in QUESTIONS]
    gold[1] = 1 - gold[1]
    rows = [{"question": q, "choices": CHOICES, "gold": g} for q, g in zip(QUESTIONS, gold, strict=True)]
    texts = [
        {"question": QUESTIONS[0], "target": scorer.continuation(QUESTIONS[0])},
        {"question": "A list", "target": "no"},
    ]
    group = {"group": "mine", "task": ["my_choice", "my_text"]}
    return write_tasks(tmp_path_factory.mktemp("tasks") / "folder", rows, texts, **{"all.yaml": group})


def evaluate_tasks(
    tiny_llama: Path,
    folder: Path,
    scratch: Path,
    /,
    data: dict[str, Any] | None = None,
    template: str | None = None,
    date: str = "",
    **values: Any,
) -> dict[str, Any]:
    scratch.mkdir()
    evaluation = EvaluationSettings(task_files=str(folder), **values)
    settings = small_settings("u", tiny_llama, "d", data=data or {})
    manager = find_tasks(evaluation, folder, scratch)
    compute = Compute(torch.device("cpu"), "float32")
    results, documents = run_tasks(
        settings, evaluation, compute, manager, tiny_llama, chat_template=template, chat_template_date=date
    )
    check_means(results, documents)
    return results


def check_means(results: dict[str, Any], documents: list[DocumentValue]) -> None:
    """The documents' values are those that a metric is the mean of."""
    by_metric: dict[tuple[str, str], list[float]] = {}
    for row in documents:
        by_metric.setdefault((row.task, row.metric), []).append(row.value)
    for (task, metric), values in by_metric.items():
        assert len(values) == results[task]["num_documents"]
        assert sum(values) / len(values) == pytest.approx(results[task]["metrics"][metric]["value"])
    plain = {(task, name) for task, table in results.items() for name in table["metrics"] if name != "perplexity"}
    assert by_metric.keys() == plain


def test_accuracy_agrees_with_hand_computed_sums(tiny_llama: Path, tasks: Path, tmp_path: Path) -> None:
    results = evaluate_tasks(tiny_llama, tasks, tmp_path / "s", tasks=["my_choice", "my_text"], batch_size=3)
    # 3 of 4: the sample's variance is 4/3 * 3/16 = 1/4, its mean's standard error sqrt(1/4 / 4)
    acc = {"value": 0.75, "stderr": 0.25, "higher_is_better": True}
    assert results["my_choice"] == {"num_documents": 4, "metrics": {"acc": acc}}
    assert results["my_text"]["num_documents"] == 2
    assert results["my_text"]["metrics"]["exact_match"]["value"] == 0.5
    assert list(results) == ["my_choice", "my_text"]


def test_a_group_with_a_limit_in_a_moved_folder(tiny_llama: Path, tasks: Path, tmp_path: Path) -> None:
    moved = tmp_path / "somewhere else" / "tasks"
    moved.parent.mkdir()
    tasks.rename(moved)
    try:
        results = evaluate_tasks(tiny_llama, moved, tmp_path / "s", tasks=["mine"], limit=1)
    finally:
        moved.rename(tasks)
    assert {name: result["num_documents"] for name, result in results.items()} == {"my_choice": 1, "my_text": 1}
    assert results["my_choice"]["metrics"]["acc"] == {"value": 1.0, "stderr": None, "higher_is_better": True}
    assert results["my_text"]["metrics"]["exact_match"]["value"] == 1.0


def test_few_shot_examples_and_the_chat_template_change_the_prompt(
    tiny_llama: Path, tasks: Path, tmp_path: Path
) -> None:
    plain: dict[str, Any] = {
        "task": "shots",
        "fewshot_split": "test",
        "include": str(tasks / "my_choice.yaml"),
        "output_type": "loglikelihood",
    }
    plain |= {"doc_to_target": "{{choices[0]}}", "doc_to_choice": None}
    plain["metric_list"] = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    folder = write_tasks(tmp_path / "tasks", [{"question": q, "choices": CHOICES, "gold": 0} for q in QUESTIONS], [])
    (folder / "shots.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    own = "{% for m in messages %}{{ persona + strftime_now('%Y-%m-%d') + m.content }}{% endfor %}"
    chat: dict[str, Any] = {"chat_template": True, "template": own, "date": "2026-07-31"}
    sailor, cook = ({"data": {"chat_template_kwargs": {"persona": name}}} for name in ("a sailor", "a cook"))
    variants: dict[str, dict[str, Any]] = {
        "none": {},
        "two": {"num_fewshot": 2},
        "chat": {"chat_template": True},
        "other day": {**chat, **cook, "date": "2025-01-01"},
        "sailor": {**chat, **sailor},
        "cook": {**chat, **cook},
        "sailor again": {**chat, **sailor, "date": "2026-07-31T23:00:00"},
        "cook again": {**chat, **cook},
    }
    perplexities = [
        evaluate_tasks(tiny_llama, folder, tmp_path / name, tasks=["shots"], **values)["shots"]["metrics"][
            "perplexity"
        ]["value"]
        for name, values in variants.items()
    ]
    assert len({round(value, 3) for value in perplexities[:6]}) == 6
    assert perplexities[6:] == perplexities[4:6], "the same day, or the same persona"
    assert all(math.isfinite(value) for value in perplexities)


def test_the_error_for_an_unknown_task_lists_similar_ones(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"tasks: my_choise not found, .* similar tasks: my_choice.* files define mine, my_ch"
    ):
        find_tasks(EvaluationSettings(tasks=["my_choise", "my_text"], task_files=str(tasks)), tasks, tmp_path)


def test_tasks_of_the_harness_and_own_tasks_are_found(tasks: Path, tmp_path: Path) -> None:
    manager = find_tasks(EvaluationSettings(tasks=["arc_easy", "my_text"], task_files=str(tasks)), tasks, tmp_path)
    assert {"arc_easy", "my_text", "mmlu"} <= set(manager.task_index)


def test_missing_data_is_named_before_the_evaluation(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks", [], [])
    (folder / "data" / "choice.jsonl").unlink()
    evaluation = EvaluationSettings(tasks=["my_choice"], task_files=str(folder))
    with pytest.raises(
        DataError, match=r"my_choice\.yaml reads its data from 'data/choice\.jsonl', which exists neither"
    ):
        find_tasks(evaluation, folder, tmp_path / "scratch")


def test_the_error_of_a_failing_task_is_shown(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks", [{"question": "q", "gold": 0}], [{"question": "q", "target": "t"}])
    with pytest.raises(EngineError, match=r"lm-evaluation-harness failed on my_choice: \w+: .*choices"):
        evaluate_tasks(tiny_llama, folder, tmp_path / "s", tasks=["my_choice"])


def test_code_in_task_files_is_refused_unless_trusted(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [{"question": question, "choices": CHOICES, "gold": 0} for question in QUESTIONS]
    folder = write_tasks(tmp_path / "tasks", rows, [])
    text = yaml.safe_dump({**CHOICE, "task": "coded"}).replace("'{{gold}}'", "!function mine.first")
    (folder / "coded.yaml").write_text(text, encoding="utf-8")
    (folder / "mine.py").write_text("def first(doc):\n    return 0\n", encoding="utf-8")
    line = text.splitlines().index("doc_to_target: !function mine.first") + 1
    with pytest.raises(ConfigError, match=rf"coded\.yaml, line {line}: !function mine\.first .*trust_task_code = true"):
        check_task_files(folder, what="f", trust=False)
    check_task_files(folder, what="f", trust=True)
    results = evaluate_tasks(tiny_llama, folder, tmp_path / "s", tasks=["coded"], trust_task_code=True)
    assert results["coded"]["num_documents"] == 4


@pytest.mark.parametrize("key", ["unsafe_code", "hf_evaluate"])
def test_other_ways_to_run_code_are_refused_too(tmp_path: Path, key: str) -> None:
    (tmp_path / "a.yaml").write_text(f"task: a\nmetric_list:\n- metric: m\n  {key}: true\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"a\.yaml, line 4: {key} runs code"):
        check_task_files(tmp_path, what="f", trust=False)
    (tmp_path / "a.yaml").write_text(f"task: a\n{key}: false\n", encoding="utf-8")
    check_task_files(tmp_path, what="f", trust=False)


def test_files_that_are_not_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task_files = 'here' has no task file; expected \*\.yaml"):
        check_task_files(tmp_path, what="here", trust=False)
    (tmp_path / "broken.yaml").write_text("task: [", encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.yaml is not YAML: .*line 2"):
        check_task_files(tmp_path, what="here", trust=False)
