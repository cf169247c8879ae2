"""What can be checked in a second or two, before any model or tokenizer is loaded."""

from __future__ import annotations

from spin_components.data.records import read_records
from spin_components.model_folder import check_model_folder
from spin_components.prepare import builtin
from spin_components.settings import Settings
from spin_components.store.run import local_path


def check_inputs(settings: Settings) -> None:
    """The checks that need no model and no tokenizer: every record and every folder, in a second or two.

    Raises:
        ConfigError, DataError, ModelError: what was given cannot be used.
    """
    if builtin.is_builtin(settings.model.base):
        builtin.check_builtin(settings.model.base, what="model.base", kinds=builtin.MODELS)
    else:
        check_model_folder(local_path(settings.model.base, what="model.base"), what="model.base")
    for name, source in named_sources(settings).items():
        if builtin.is_builtin(source):
            builtin.check_builtin(source, what=f"data.{name}", kinds=builtin.DATA_SETS)
        else:
            read_records(source, on_bad_record=settings.data.on_bad_record)


def named_sources(settings: Settings) -> dict[str, str]:
    """The data sources that are set, by the key that sets them."""
    sources = {"train": settings.data.train, "validation": settings.data.validation}
    return {name: source for name, source in sources.items() if source}
