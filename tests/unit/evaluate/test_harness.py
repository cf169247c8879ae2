"""lm-evaluation-harness itself, on a small model and task files of one's own, against sums done without it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from small import small_settings
from spin_components.device import Compute
from spin_components.errors import ConfigError, DataError, EngineError
from spin_components.evaluate.harness import run_tasks
from spin_components.evaluate.task_files import check_task_files, find_tasks
from spin_components.evaluation_settings import EvaluationSettings
from spin_components.modeling import load_model
from spin_components.settings import ModelSettings
from spin_components.tokenizer import load_tokenizer
from task_folder import CHOICE, write_tasks

QUESTIONS = ["Return the name of", "The file is closed", "A list of all", "Raise an error if"]
CHOICES = ["the module", "a new string"]


class Scorer:
    """The model by itself, without the harness and without the project's own scoring."""

    def __init__(self, folder: Path) -> None:
        settings = ModelSettings(base="x")
        self._model, self._tokenizer = load_model(folder, settings).eval(), load_tokenizer(folder, settings)

    def _logprobs(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self._model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return logits.log_softmax(-1)

    def preferred(self, question: str) -> int:
        """The choice that is likelier after the question and a space."""
        start = self._tokenizer(question).input_ids
        sums = []
        for choice in CHOICES:
            ids = self._tokenizer(f"{question} {choice}").input_ids
            assert ids[: len(start)] == start
            logprobs = self._logprobs(ids)
            sums.append(sum(float(logprobs[place - 1, ids[place]]) for place in range(len(start), len(ids))))
        assert abs(sums[0] - sums[1]) > 1e-3, "too close to tell by"
        return max((0, 1), key=sums.__getitem__)

    def goes_on(self, question: str, num_tokens: int = 4) -> str:
        """The likeliest next tokens, one by one."""
        start = self._tokenizer(question).input_ids
        ids = list(start)
        for _ in range(num_tokens):
            ids.append(int(self._logprobs(ids)[-1].argmax()))
        assert self._tokenizer.eos_token_id not in ids
        text: str = self._tokenizer.decode(ids[len(start) :])
        return text


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Three of four choices are the model's own, and one of two texts."""
    scorer = Scorer(tiny_llama)
    gold = [scorer.preferred(question) for question in QUESTIONS]
    gold[1] = 1 - gold[1]
    rows = [{"question": q, "choices": CHOICES, "gold": g} for q, g in zip(QUESTIONS, gold, strict=True)]
    texts = [{"question": QUESTIONS[0], "target": scorer.goes_on(QUESTIONS[0])}, {"question": "A list", "target": "no"}]
    group = {"group": "mine", "task": ["my_choice", "my_text"]}
    return write_tasks(tmp_path_factory.mktemp("tasks") / "folder", rows, texts, **{"all.yaml": group})


def evaluated(tiny_llama: Path, folder: Path, scratch: Path, /, **values: Any) -> dict[str, Any]:
    scratch.mkdir()
    evaluation = EvaluationSettings(task_files=str(folder), **values)
    settings = small_settings("u", tiny_llama, "d")
    manager = find_tasks(evaluation, folder, scratch)
    return run_tasks(settings, evaluation, Compute(torch.device("cpu"), "float32"), manager, tiny_llama)


def test_accuracy_is_that_of_sums_done_by_hand(tiny_llama: Path, tasks: Path, tmp_path: Path) -> None:
    found = evaluated(tiny_llama, tasks, tmp_path / "s", tasks=["my_choice", "my_text"], batch_size=3)
    # 3 of 4: the sample's variance is 4/3 * 3/16 = 1/4, its mean's standard error sqrt(1/4 / 4)
    assert found["my_choice"] == {"num_documents": 4, "metrics": {"acc": {"value": 0.75, "stderr": 0.25}}}
    assert found["my_text"]["num_documents"] == 2
    assert found["my_text"]["metrics"]["exact_match"]["value"] == 0.5
    assert list(found) == ["my_choice", "my_text"]


def test_a_group_a_limit_and_a_folder_elsewhere(tiny_llama: Path, tasks: Path, tmp_path: Path) -> None:
    moved = tmp_path / "somewhere else" / "tasks"
    moved.parent.mkdir()
    tasks.rename(moved)
    try:
        found = evaluated(tiny_llama, moved, tmp_path / "s", tasks=["mine"], limit=1)
    finally:
        moved.rename(tasks)
    assert {name: result["num_documents"] for name, result in found.items()} == {"my_choice": 1, "my_text": 1}
    assert found["my_choice"]["metrics"]["acc"] == {"value": 1.0, "stderr": None}
    assert found["my_text"]["metrics"]["exact_match"]["value"] == 1.0


def test_examples_come_before_the_question_and_the_chat_template_around_it(
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
    found = [
        evaluated(tiny_llama, folder, tmp_path / name, tasks=["shots"], **values)["shots"]["metrics"]["perplexity"][
            "value"
        ]
        for name, values in (("none", {}), ("two", {"num_fewshot": 2}), ("chat", {"chat_template": True}))
    ]
    assert len({round(value, 3) for value in found}) == 3
    assert all(math.isfinite(value) for value in found)


def test_a_task_that_nobody_has_is_refused_with_those_that_there_are(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"names my_choise, which neither .* like it: my_choice.* files have mine, my_ch"
    ):
        find_tasks(EvaluationSettings(tasks=["my_choise", "my_text"], task_files=str(tasks)), tasks, tmp_path)


def test_tasks_of_the_harness_are_found_beside_ones_own(tasks: Path, tmp_path: Path) -> None:
    manager = find_tasks(EvaluationSettings(tasks=["arc_easy", "my_text"], task_files=str(tasks)), tasks, tmp_path)
    assert {"arc_easy", "my_text", "mmlu"} <= set(manager.task_index)


def test_data_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks", [], [])
    (folder / "data" / "choice.jsonl").unlink()
    evaluation = EvaluationSettings(tasks=["my_choice"], task_files=str(folder))
    with pytest.raises(
        DataError, match=r"my_choice\.yaml takes its data from 'data/choice\.jsonl', which lies neither"
    ):
        find_tasks(evaluation, folder, tmp_path / "scratch")


def test_a_task_that_fails_says_how(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks", [{"question": "q", "gold": 0}], [{"question": "q", "target": "t"}])
    with pytest.raises(EngineError, match=r"lm-evaluation-harness failed on my_choice: \w+: .*choices"):
        evaluated(tiny_llama, folder, tmp_path / "s", tasks=["my_choice"])


def test_code_in_task_files_is_refused_unless_it_is_trusted(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [{"question": question, "choices": CHOICES, "gold": 0} for question in QUESTIONS]
    folder = write_tasks(tmp_path / "tasks", rows, [])
    text = yaml.safe_dump({**CHOICE, "task": "coded"}).replace("'{{gold}}'", "!function mine.first")
    (folder / "coded.yaml").write_text(text, encoding="utf-8")
    (folder / "mine.py").write_text("def first(doc):\n    return 0\n", encoding="utf-8")
    line = text.splitlines().index("doc_to_target: !function mine.first") + 1
    with pytest.raises(ConfigError, match=rf"coded\.yaml, line {line}: !function mine\.first .*trust_task_code = true"):
        check_task_files(folder, what="f", trust=False)
    check_task_files(folder, what="f", trust=True)
    found = evaluated(tiny_llama, folder, tmp_path / "s", tasks=["coded"], trust_task_code=True)
    assert found["coded"]["num_documents"] == 4


@pytest.mark.parametrize("key", ["unsafe_code", "hf_evaluate"])
def test_other_ways_to_run_code_are_refused_too(tmp_path: Path, key: str) -> None:
    (tmp_path / "a.yaml").write_text(f"task: a\nmetric_list:\n- metric: m\n  {key}: true\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"a\.yaml, line 4: {key} runs code"):
        check_task_files(tmp_path, what="f", trust=False)
    (tmp_path / "a.yaml").write_text(f"task: a\n{key}: false\n", encoding="utf-8")
    check_task_files(tmp_path, what="f", trust=False)


def test_files_that_are_no_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task_files = 'here' holds no task file; expected \*\.yaml"):
        check_task_files(tmp_path, what="here", trust=False)
    (tmp_path / "broken.yaml").write_text("task: [", encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.yaml is not YAML: .*line 1"):
        check_task_files(tmp_path, what="here", trust=False)
