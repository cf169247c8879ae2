"""Settings as the parameters of the compiled pipeline, which the Kubeflow UI shows as a form.

What people change often is a field of its own. All else of a section is one field `settings_SECTION` with JSON, whose
keys win over the defaults that the pipeline was compiled with, and over the fields. KFP's UI sorts the fields by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spin_components.errors import ConfigError
from spin_components.settings.section import Section
from spin_components.settings.settings import Settings

PREFIX = "settings_"
"""Begins the name of a section's field."""


@dataclass(frozen=True, slots=True)
class FormField:
    """A setting with a field of its own.

    Attributes:
        section: section of the setting.
        key: its name there.
        kind: `str`, `int`, or `list` for a number or a list of numbers, written as JSON text.
        description: shown by KFP's API and in the docs; the UI's form has none.
    """

    section: str
    key: str
    kind: type
    description: str


FIELDS: dict[str, FormField] = {
    "base_model": FormField("model", "base", str, "Model to start from: s3://…, hf://org/name@revision, builtin:NAME."),
    "beta": FormField(
        "spin", "ref_policy_kl_penalty", list, "Weight of the log-ratio: a number, or one per iteration."
    ),
    "data_train": FormField("data", "train", str, "Prompts with human answers: s3://…, hf://datasets/org/name."),
    "data_validation": FormField("data", "validation", str, "Held-out data; empty: a part of data_train is held out."),
    "epochs": FormField("spin", "max_epochs", list, "Epochs per iteration; fixed when the pipeline is compiled."),
    "global_batch_size": FormField("training", "global_batch_size", int, "Pairs per optimizer step."),
    "gpu_type": FormField("placement", "accelerator", str, "As in nvidia.com/gpu; empty: CPU only."),
    "gpus_generate": FormField("generation", "tensor_parallel", int, "GPUs of a generate pod."),
    "gpus_train": FormField("hardware", "ranks", int, "Training processes of a pod; on GPUs, one per GPU."),
    "learning_rate": FormField(
        "training", "lr", list, "Peak learning rate: a number, or a list with one per iteration."
    ),
    "max_iterations": FormField("spin", "max_iterations", int, "Iterations; at most as many as were compiled."),
    "max_new_tokens": FormField("generation", "max_new_tokens", int, "Longest generated answer, in tokens."),
    "max_time": FormField("run", "max_time", str, "Time limit of one attempt, in seconds or as DD:HH:MM:SS."),
    "run_uri": FormField(
        "run", "uri", str, "Storage of the run. {id} is KFP's id of the run; the address of an earlier run resumes it."
    ),
    "seed": FormField("run", "seed", int, "Random seed."),
}


def form_values(settings: Settings) -> dict[str, Any]:
    """All settings of a run as values of the form: scalars, and JSON text for the rest of each section."""
    sections = settings.model_dump(mode="json", include=set(Settings.model_fields))
    fields = {}
    for name, field in FIELDS.items():
        value = sections[field.section].pop(field.key)
        fields[name] = json.dumps(value) if field.kind is list else value
    return {**fields, **{f"{PREFIX}{section}": json.dumps(rest) for section, rest in sections.items()}}


def form_defaults(settings: Settings) -> dict[str, Any]:
    """Defaults of the form: as `form_values`, with empty JSON for the sections and a place of its own for each run."""
    values = form_values(settings)
    defaults = {name: "{}" if name.startswith(PREFIX) else value for name, value in values.items()}
    return {**defaults, "run_uri": own_place(settings.run.uri)}


def own_place(uri: str) -> str:
    """The address of a folder in which each run has storage of its own, unless the address contains a placeholder."""
    return uri if not uri or "{id}" in uri or "{time}" in uri else f"{uri.rstrip('/')}/{{id}}"


def settings_from_form(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Every section of a run's settings, unchecked, from a filled-in form.

    Args:
        values: of the form; other keys are ignored.
        defaults: sections of the configuration that the pipeline was compiled from.

    Raises:
        ConfigError: a field is no JSON where it has to be; every such field is named.
    """
    mistakes: list[str] = []
    sections = {section: dict(table) for section, table in defaults.items()}
    for name, field in FIELDS.items():
        if name in values:
            sections[field.section][field.key] = _field_value(name, field, values[name], mistakes)
    for section, table in sections.items():
        given = _section_values(f"{PREFIX}{section}", values.get(f"{PREFIX}{section}", "{}"), mistakes)
        for key, value in given.items():
            is_table = isinstance(value, dict) and _is_section(section, key)
            table[key] = {**table.get(key, {}), **value} if is_table else value
    if mistakes:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError(f"{count} in the pipeline's parameters:\n" + "\n".join(f"  {line}" for line in mistakes))
    return sections


def _field_value(name: str, field: FormField, value: Any, mistakes: list[str]) -> Any:
    if field.kind is not list or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        mistakes.append(
            f"{name} = {value!r}: expected a number, or a list with one per iteration, like [0.1, 0.1, 5.0]"
        )
        return None


def _section_values(name: str, value: Any, mistakes: list[str]) -> dict[str, Any]:
    try:
        given = json.loads(value or "{}") if isinstance(value, str) else value
    except ValueError as error:
        mistakes.append(f'{name} is no JSON ({error}); expected a table of settings, like {{"key": 1}}')
        return {}
    if not isinstance(given, dict):
        mistakes.append(f'{name} = {value!r}: expected a table of settings, like {{"key": 1}}')
        return {}
    return given


def _is_section(section: str, key: str) -> bool:
    """Whether a setting is a table of settings itself, as `placement.train`."""
    model = Settings.model_fields[section].annotation
    field = model.model_fields.get(key) if isinstance(model, type) and issubclass(model, Section) else None
    kind = field.annotation if field else None
    return isinstance(kind, type) and issubclass(kind, Section)
