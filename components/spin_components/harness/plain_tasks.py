"""Checks that a task file of lm-evaluation-harness is plain data: shapes, YAML tags, keys and names on allow-lists.

The allow-lists are what lm-evaluation-harness itself ships. Whatever is not on them could make the harness import a
module, download code, or read a file with a loader that runs code.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from spin_components.errors import ConfigError, DataError

METRICS = (
    *("brier_score", "acc", "acc_norm", "acc_mutual_info", "acc_bytes", "exact_match", "perplexity", "likelihood"),
    *("word_perplexity", "byte_perplexity", "bits_per_byte", "bypass", "mcc", "f1", "bleu", "chrf", "chrf++", "ter"),
    "acc_all",
)
"""Metrics that the harness ships; it searches any other name as a file, or on the Hub, and runs what it finds."""

FILTERS = (
    *("regex", "regex_pos", "remove_whitespace", "multi_choice_regex", "take_first", "take_first_k", "majority_vote"),
    *("lowercase", "uppercase", "map", "format_span"),
)
"""Filters that the harness ships, but `custom`, which calls a Python function."""

BUILDERS = (
    *("csv", "json", "parquet", "arrow", "text", "conll", "xml", "imagefolder", "audiofolder", "videofolder"),
    *("meshfolder", "pdffolder", "niftifolder", "webdataset", "hdf5", "mmcif", "pdb", "genbank", "fasta", "fastq"),
)
"""Formats of data that the library `datasets` reads as plain data."""

OTHER_BUILDERS = ("pandas", "eval", "lance", "tsfile", "iceberg", "vortex", "harbor")
"""Its other formats: pickles, and those that are read through another library's catalogs and plug-ins."""

PROMPTS = ("qa-basic",)
"""Collections of prompts that the harness ships."""

TASK_KEYS = frozenset(
    (
        *("task", "task_alias", "tag", "custom_dataset", "dataset_path", "dataset_name", "dataset_kwargs"),
        *("training_split", "validation_split", "test_split", "fewshot_split", "process_docs", "doc_to_text"),
        *("doc_to_target", "doc_to_image", "doc_to_audio", "unsafe_code", "doc_to_choice", "process_results"),
        *("use_prompt", "description", "target_delimiter", "fewshot_delimiter", "fewshot_config", "num_fewshot"),
        *("metric_list", "output_type", "generation_kwargs", "repeats", "filter_list", "should_decontaminate"),
        *("doc_to_decontamination_query", "gen_prefix", "metadata"),
    )
)
"""Keys of a task."""

GROUP_KEYS = frozenset(("group", "group_alias", "task", "aggregate_metric_list", "metadata"))
"""Keys of a group of tasks."""

_CODE_KEYS = ("unsafe_code", "hf_evaluate")
"""Keys of a task that make the harness run foreign code: the model's answers, or a downloaded metric."""

_KEYS = TASK_KEYS | GROUP_KEYS | {"include", "task_list", *_CODE_KEYS}
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge", "value", "timestamp")
)
_FUNCTION = "!function"

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 4 << 20, 40, 200_000
"""Largest task file, deepest nest in it, and largest number of values with every alias written out."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the harness's own choice: one parser for both


def check_plain(path: Path, name: str, *, trust: bool) -> None:
    """Check a task file and the files that it includes.

    Args:
        path: of the file.
        name: of it, for messages.
        trust: whether code is allowed; the file's shape is checked in any case.

    Raises:
        DataError: a file is not YAML, too large, or nested too deeply.
        ConfigError: it would run code, or may do so since it has a tag, key or name that is not on the allow-lists.
    """
    _check_file(path, name, trust=trust, seen=set())


def _check_file(path: Path, name: str, *, trust: bool, seen: set[Path]) -> None:
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise DataError(f"evaluation.task_files: {name} is no regular file, expected a task file; leave it out")
    if path in seen or not path.exists() or _is_shipped(path):
        return  # a file that is included and missing makes its task unknown, which `find_tasks` reports
    seen.add(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"evaluation.task_files: {name} has {size} bytes, expected a task file of at most {MAX_BYTES}")
    content = path.read_bytes()
    try:
        _check_depth(content, name)
        node = yaml.compose(content, Loader=_Loader)
        if node is None:
            return
        _check_size(node, name)
        if not trust:
            _check_nodes(node, name)
        config = _construct(content)
    except (yaml.YAMLError, ValueError) as error:
        message = " ".join(str(error).split()).replace(' in "<byte string>"', "")
        raise DataError(f"evaluation.task_files: {name} is not YAML: {message}") from error
    if not isinstance(config, dict):
        return  # no task: the harness skips the file
    if not trust:
        _check_config(config, name)
    includes = config.get("include", [])
    for include in includes if isinstance(includes, list) else [includes]:
        if isinstance(include, str):
            _check_file(path.parent / include, f"{name} > {include}", trust=trust, seen=seen)


def _is_shipped(path: Path) -> bool:
    """Whether a file is one of the harness's own task files, which may be included."""
    spec = importlib.util.find_spec("lm_eval")
    return bool(spec and spec.origin) and path.is_relative_to(
        Path(str(spec and spec.origin)).resolve().parent / "tasks"
    )


def _check_depth(content: bytes, name: str) -> None:
    """Refuse a deep nest, which parsers that recurse cannot read."""
    depth = 0
    for event in yaml.parse(content, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1
            raise DataError(
                f"evaluation.task_files: {name}, line {line}: nested more than {MAX_DEPTH} deep, expected a task file"
            )


def _check_size(root: yaml.Node, name: str) -> None:
    """Refuse aliases that refer to themselves, or that would grow to too many values when written out."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size_of(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            line = node.start_mark.line + 1
            raise DataError(f"evaluation.task_files: {name}, line {line}: an alias that refers to itself")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size_of(child) for child in _children(node))
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if size_of(root) > MAX_VALUES:
        raise DataError(
            f"evaluation.task_files: {name} has more than {MAX_VALUES} values where its aliases are written out; "
            "expected a task file"
        )


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check_nodes(root: yaml.Node, name: str) -> None:
    """Refuse tags and keys that run code, wherever they stand, also as a key of a mapping."""
    for node in _walk(root, set()):
        line = node.start_mark.line + 1
        if node.tag == _FUNCTION:
            raise _refusal(f"{name}, line {line}", f"{_FUNCTION} {node.value}")
        if node.tag not in _TAGS:
            raise _refusal(f"{name}, line {line}", f"the YAML tag {node.tag}", "may run")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value in _CODE_KEYS and str(value.value).lower() not in ("false", "null", "~", ""):
                    raise _refusal(f"{name}, line {key.start_mark.line + 1}", str(key.value))


def _walk(node: yaml.Node, seen: set[int]) -> Iterator[yaml.Node]:
    """A node and all below it, each once."""
    if id(node) not in seen:
        seen.add(id(node))
        yield node
        for child in _children(node):
            yield from _walk(child, seen)


def _construct(content: bytes) -> Any:
    """The file's content as plain data; a function is its name."""

    class Loader(_Loader):  # type: ignore[misc]
        """Reads everything that the harness's loader reads, and imports nothing."""

    Loader.add_constructor(_FUNCTION, lambda loader, node: str(node.value))
    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    Loader.add_multi_constructor("tag:", lambda loader, suffix, node: None)
    loader = Loader(content)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _check_config(config: Mapping[Any, Any], where: str) -> None:
    """Refuse keys and names that are not on the allow-lists, in a task, a group, and the tasks of a group."""
    if "class" in config:
        raise _refusal(where, "class")
    is_task = {"task", "group", "metric_list", "dataset_path"} & config.keys()
    if is_task and (unknown := sorted(str(key) for key in config if key not in _KEYS)):
        raise _refusal(where, f"the unknown key {unknown[0]!r}", "may run")
    path = config.get("dataset_path")
    if isinstance(path, str) and path in OTHER_BUILDERS:
        raise _refusal(where, f"dataset_path = {path!r}", "may run", f"one of {', '.join(BUILDERS)}, or a data set")
    prompt = config.get("use_prompt")
    if prompt is not None and str(prompt).partition(":")[0] not in PROMPTS:
        raise _refusal(where, f"use_prompt = {prompt!r}", "may run", f"one of {', '.join(PROMPTS)}")
    for index, metric in enumerate(_dicts(config.get("metric_list"))):
        if (name := metric.get("metric")) not in METRICS:
            raise _refusal(
                f"{where}, metric_list[{index}]", f"the metric {name!r}", "may run", f"one of {', '.join(METRICS)}"
            )
    for index, pipeline in enumerate(_dicts(config.get("filter_list"))):
        for step in _dicts(pipeline.get("filter")):
            if (name := step.get("function")) not in FILTERS:
                place = f"{where}, filter_list[{index}]"
                raise _refusal(place, f"the filter {name!r}", "may run", f"one of {', '.join(FILTERS)}")
    for key in ("task", "task_list"):
        for child in _dicts(config.get(key)):
            _check_config(child, f"{where}, {child.get('task') or child.get('group')}")


def _dicts(value: Any) -> list[Mapping[Any, Any]]:
    """The tables in a list; none where it is no list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _refusal(where: str, what: str, runs: str = "runs", expected: str = "") -> ConfigError:
    return ConfigError(
        f"evaluation.task_files: {where}: {what} {runs} code that is not the harness's own"
        f"{f', expected {expected}' if expected else ''}. If you trust it, set evaluation.trust_task_code = true"
    )
