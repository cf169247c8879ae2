"""The chat template's file that `prepare` copied into a run."""

from __future__ import annotations

from spin_components.store import layout
from spin_components.store.base import RunStore
from spin_components.store.manifests import read_manifest


def read_chat_template(run: RunStore) -> str | None:
    """Text of the file that `data.chat_template` names; None where it names none.

    Raises:
        IntegrityError: the copy is missing or altered.
    """
    made_by = layout.inputs_manifest("chat_template")
    if not run.exists(made_by):
        return None
    folder = run.fetch(read_manifest(run, made_by).outputs, what="the chat template", made_by=made_by)
    return (folder / layout.CHAT_TEMPLATE).read_bytes().decode()
