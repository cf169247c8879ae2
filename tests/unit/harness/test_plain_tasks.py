"""Task files that are not trusted: no way to code is open, and what the harness itself ships is allowed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from spin_components.data.cpu_limit import CpuLimitError
from spin_components.errors import ConfigError, DataError, EngineError
from spin_components.harness import plain_tasks, sandbox
from spin_components.harness.plain_tasks import MAX_DEPTH, check_plain
from spin_components.harness.sandbox import limited_harness
from support.task_folder import CHOICE, GENERATE


def check(folder: Path, text: str, *, trust: bool = False) -> None:
    (folder / "a.yaml").write_text(text, encoding="utf-8")
    check_plain(folder / "a.yaml", "a.yaml", trust=trust)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: a\ndoc_to_text: !function utils.f\n", r"line 2: !function utils\.f runs"),
        ("task: a\nmetadata:\n  !function utils.f: 1\n", r"line 3: !function utils\.f runs"),
        ("a: &x !function utils.f\ntask: *x\n", r"line 1: !function"),
        ("task: a\nx: !!python/name:os.system ''\n", r"the YAML tag tag:yaml\.org,2002:python/name:os\.system may run"),
        ("task: a\nx: !include other\n", r"the YAML tag !include may run"),
        ("task: a\nmetric_list: [{metric: ./evil.py}]\n", r"metric_list\[0\]: the metric '\./evil\.py' may run"),
        ("task: a\nmetric_list: [{metric: somebody/metric}]\n", r"the metric 'somebody/metric' may run"),
        ("metadata: &b {metric_list: [{metric: evil}]}\ntask: a\n<<: *b\n", r"the metric 'evil' may run"),
        ("group: g\ntask: [{task: arc_easy, metric_list: [{metric: evil}]}]\n", r"arc_easy, metric_list\[0\]"),
        ("task: a\nmetric_list: [{metric: acc, hf_evaluate: true}]\n", r"hf_evaluate runs"),
        ("task: a\nunsafe_code: 'yes'\n", r"unsafe_code runs"),
        ("task: a\nfilter_list: [{name: f, filter: [{function: custom}]}]\n", r"filter_list\[0\]: the filter 'custom'"),
        ("task: a\nuse_prompt: 'promptsource:x'\n", r"use_prompt = 'promptsource:x' may run"),
        ("task: a\nuse_prompt: './p.yaml:x'\n", r"use_prompt"),
        ("task: a\ndataset_path: pandas\n", r"dataset_path = 'pandas' may run .* expected one of csv, json"),
        ("task: a\nclass: utils.Task\n", r"class runs"),
        ("task: a\nrecipe: card=x\n", r"the unknown key 'recipe' may run"),
    ],
)
def test_each_way_to_code_is_refused_unless_trusted(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"task_files: a\.yaml.*{message}.*set evaluation\.trust_task_code = true"):
        check(tmp_path, text)
    check(tmp_path, text, trust=True)


@pytest.mark.parametrize("name", ["more.txt", "more", "deep/.hidden", "more.yml"])
def test_an_included_file_is_checked_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / name).write_text("doc_to_text: !function utils.f\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"a\.yaml > {name}, line 1: !function"):
        check(tmp_path, f"task: a\ninclude: [{name}]\n")


def test_a_link_does_not_hide_where_an_include_leads(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "b.yaml").write_text("include: c.txt\n", encoding="utf-8")
    (tmp_path / "there" / "c.txt").write_text("x: !function utils.f\n", encoding="utf-8")
    (tmp_path / "b.yaml").symlink_to(tmp_path / "there" / "b.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml > b\.yaml > c\.txt, line 1"):
        check(tmp_path, "include: b.yaml\ntask: a\n")


def test_files_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("include: a.yaml\n", encoding="utf-8")
    check(tmp_path, "include: b.yaml\ntask: a\n")


BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"a\.yaml has more than 200000 values where its aliases are written out"),
        ("[" * 100_000, rf"a\.yaml, line 1: nested more than {MAX_DEPTH} deep"),
        ("x: " + "[" * 60 + "]" * 60, r"nested more than"),
        ("task: &a [*a]\n", r"a\.yaml, line 1: an alias that refers to itself"),
        ("task: [", r"a\.yaml is not YAML: .*line 2"),
        ("? {a: 1}\n: 2\n", r"a\.yaml is not YAML: .*unhashable"),
        ("task: a\n---\ntask: b\n", r"a\.yaml is not YAML: "),
        ("task: *nobody\n", r"a\.yaml is not YAML: .*undefined alias"),
        ("x" * (4 << 20) + "x", r"a\.yaml has 4194305 bytes, expected a task file of at most 4194304"),
    ],
    ids=["bomb", "deep", "deep flow", "itself", "open", "key", "documents", "alias", "large"],
)
def test_shapes_that_parsers_choke_on_are_refused(tmp_path: Path, text: str, message: str, trust: bool) -> None:
    with pytest.raises(DataError, match=message):
        check(tmp_path, text, trust=trust)


@pytest.mark.parametrize("content", [b"\xff\xfet\0a", b"task: \xff\n", b"\0"])
def test_files_of_other_encodings_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.yaml is not YAML"):
        check_plain(tmp_path / "a.yaml", "a.yaml", trust=False)


def test_utf_16_is_read_as_the_harness_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("task: a\nx: !function utils.f\n".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"line 2: !function"):
        check_plain(tmp_path / "a.yaml", "a.yaml", trust=False)


def test_plain_tasks_are_allowed(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "filter_list": [{"name": "f", "filter": [{"function": "regex", "regex_pattern": "x"}]}],
        "metadata": {"version": 1.0, "metric": "theirs", "date": "2026-01-01"},
        "use_prompt": "qa-basic:q-newline-a",
        "unsafe_code": False,
    }
    for task in (CHOICE, {**GENERATE, **more}, {"group": "g", "task": ["my_text", {"task": "arc_easy"}], "tag": "t"}):
        check(tmp_path, yaml.safe_dump(task))
    check(tmp_path, "group: g\ntask: [arc_easy]\naggregate_metric_list: [{metric: anything, weight_by_size: true}]\n")
    check(tmp_path, "not: a task\nbut: {a: !!binary aGk=}\n", trust=True)
    check(tmp_path, "- a list\n")
    check(tmp_path, "")


def test_a_task_may_build_on_one_of_the_harness(tmp_path: Path) -> None:
    import lm_eval

    shipped = Path(lm_eval.__file__).parent / "tasks" / "hendrycks_math" / "hendrycks_math_algebra.yaml"
    assert "!function" in shipped.read_text("utf-8")
    check(tmp_path, f"include: {shipped}\ntask: mine\n")


def test_the_allow_lists_are_what_the_harness_ships() -> None:
    import lm_eval.api.metrics
    import lm_eval.filters  # noqa: F401
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from lm_eval.api.registry import filter_registry, metric_registry
    from lm_eval.config.group import GroupConfig
    from lm_eval.config.task import TaskConfig
    from lm_eval.prompts import PROMPT_REGISTRY

    assert set(plain_tasks.METRICS) == set(metric_registry)
    assert {*plain_tasks.FILTERS, "custom"} == set(filter_registry)
    assert {each.name for each in fields(TaskConfig)} == plain_tasks.TASK_KEYS
    assert {each.name for each in fields(GroupConfig)} == plain_tasks.GROUP_KEYS
    assert {*plain_tasks.BUILDERS, *plain_tasks.OTHER_BUILDERS} == set(_PACKAGED_DATASETS_MODULES)
    assert set(plain_tasks.PROMPTS) == set(PROMPT_REGISTRY)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ question.__init__.__globals__ }}",
        "{{ self._TemplateReference__context.environment }}",
        "{% for key in lipsum.__globals__ %}{{ key }}{% endfor %}",
    ],
)
def test_templates_reach_no_python_objects_unless_trusted(template: str) -> None:
    from jinja2.exceptions import SecurityError, UndefinedError
    from lm_eval.utils import apply_template

    with limited_harness(trust=False), pytest.raises((SecurityError, UndefinedError)):
        apply_template(template, {"question": "q"})


def test_templates_of_tasks_render_as_before() -> None:
    from lm_eval import utils

    template = "{{question|trim}} {{choices[0].split()[0]|regex_replace('a', 'b')}}{% set _ = xs.append(3) %}{{xs}}\n"
    document = {"question": " q ", "choices": ["aa c"]}
    own = utils.env
    expected = utils.apply_template(template, {**document, "xs": [1]})
    with limited_harness(trust=False):
        assert utils.apply_template(template, {**document, "xs": [1]}) == expected == "q bb[1, 3]\n"
        assert utils.env is not own
    assert utils.env is own
    with limited_harness(trust=True):
        assert utils.env is own


def test_a_template_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.utils import apply_template

    monkeypatch.setattr(sandbox, "LIMIT_S", 0.05)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with limited_harness(trust=False), pytest.raises(CpuLimitError, match="still running"):
        apply_template(loop, {})


def made_task(tmp_path: Path, **more: Any) -> Any:
    """A generation task of one document, with its one answer given: letters, which slow patterns try in every way."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

    (tmp_path / "text.jsonl").write_text('{"question": "q", "target": "t"}\n', encoding="utf-8")
    files = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "text.jsonl")}}}
    task = ConfigurableTask(config=GENERATE | files | more, cache_dir=str(tmp_path))
    answer = Instance(request_type="generate_until", doc=task.eval_docs[0], arguments=("q", {}), idx=0)
    answer.resps = ["a" * 40]
    task._instances = [answer]
    return task


@pytest.mark.parametrize("pattern", [r"(a+)+$!", r"(a|a)+!", r"(\w*)*!"])
def test_a_filters_slow_pattern_is_stopped(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"function": "regex", "regex_pattern": pattern}
    task = made_task(tmp_path, filter_list=[{"name": "strict", "filter": [step, {"function": "take_first"}]}])
    monkeypatch.setattr(sandbox, "FILTER_LIMIT_S", 0.05)
    with (
        limited_harness(trust=False),
        pytest.raises(EngineError, match=r"task my_text, filter_list: it was still runn"),
    ):
        task.apply_filters()


def test_a_metrics_slow_pattern_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = {"metric": "exact_match", "regexes_to_ignore": [r"(a+)+$!"], "aggregation": "mean"}
    task = made_task(tmp_path, metric_list=[metric | {"higher_is_better": True}])
    monkeypatch.setattr(sandbox, "LIMIT_S", 0.05)
    with limited_harness(trust=False), pytest.raises(EngineError, match="task my_text, metric_list: it was still runn"):
        task.process_results(task.eval_docs[0], ["a" * 40])


def test_a_task_of_plain_patterns_scores_as_before(tmp_path: Path) -> None:
    step = {"function": "regex", "regex_pattern": "(a{3})"}
    task = made_task(tmp_path, filter_list=[{"name": "strict", "filter": [step, {"function": "take_first"}]}])
    with limited_harness(trust=False):
        task.apply_filters()
        answer = task.instances[0].filtered_resps["strict"]
        assert (answer, task.process_results({"target": "aaa"}, [answer])["exact_match"]) == ("aaa", 1.0)
