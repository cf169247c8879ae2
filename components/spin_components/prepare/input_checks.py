"""Checks of addresses and records that load no model and no tokenizer."""

from __future__ import annotations

from spin_components.data import builtin
from spin_components.data.records import check_source
from spin_components.errors import ModelError
from spin_components.harness.task_files import open_task_files
from spin_components.model.folder import check_model_folder
from spin_components.prepare.chat_template import read_template
from spin_components.settings.run import ModelSettings
from spin_components.settings.settings import Settings
from spin_components.store.addresses import check_address, local_path, scheme_of
from spin_components.store.sources import Sources


def check_inputs(settings: Settings) -> None:
    """Check every address and every record.

    Raises:
        ConfigError, DataError, ModelError: settings, data or model cannot be used.
        StorageAccessError, StorageError: storage refuses, or does not answer.
    """
    base = settings.model.base
    if builtin.is_builtin(base):
        builtin.check_builtin(base, what="model.base", kinds=builtin.MODELS)
    elif scheme_of(base) == "file":
        folder = local_path(base, what="model.base")
        check_parent(settings.model, is_there=folder.exists())
        check_model_folder(folder, what="model.base", address=base, quantize=settings.lora.quantize)
    else:
        check_address(base, what="model.base")
    with Sources() as sources:
        read_template(sources, settings.data)
        if settings.evaluation.task_files:
            open_task_files(sources, settings.evaluation)
        for name, uri in named_sources(settings).items():
            if builtin.is_builtin(uri):
                builtin.check_builtin(uri, what=f"data.{name}", kinds=builtin.DATA_SETS)
            else:
                check_source(sources.open_data(uri, what=f"data.{name}"), on_bad_record=settings.data.on_bad_record)


def check_parent(model: ModelSettings, *, is_there: bool) -> None:
    """Check that the policy which a fork began with is still where the other run had it.

    Raises:
        ModelError: it is not; the message says what is possible without it.
    """
    if model.forked_from and not is_there:
        raise ModelError(
            f"model.base = {model.base!r} is not there any more; expected the policy of {model.forked_from}, which "
            "this run was forked from. If that run was moved, give its new address (--fork-from, or model.base): the "
            "same files are known by their digest. Without it nothing more can be trained here, but finished "
            "iterations can be shown, exported and forked from"
        )


def named_sources(settings: Settings) -> dict[str, str]:
    """The data sources that are set, by the key that sets them."""
    sources = {"train": settings.data.train, "validation": settings.data.validation}
    return {name: source for name, source in sources.items() if source}
