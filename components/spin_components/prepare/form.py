"""The pipeline's parameters as a run's settings and its address."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from spin_components.errors import ConfigError
from spin_components.settings.form import settings_from_form
from spin_components.store.addresses import filled_in, scheme_of
from spin_components.store.lease import RUNNER


def read_form(
    form: Mapping[str, Any], compiled: Mapping[str, Any], attempt: str, created: str
) -> tuple[str, dict[str, Any]]:
    """Read a filled-in form.

    Args:
        form: the pipeline's parameters by name.
        compiled: what the pipeline was compiled for; `defaults` has its settings as JSON text.
        attempt: KFP's id of the run.
        created: when KFP created it.

    Returns: the run's address; every section of its settings, unchecked.

    Raises:
        ConfigError: a field is no JSON where it has to be, or pods cannot share the address.
    """
    settings = settings_from_form(form, json.loads(compiled["defaults"]))
    uri = str(settings["run"]["uri"])
    if RUNNER not in os.environ:
        uri = filled_in(uri, attempt, created, what="run_uri")
        if scheme_of(uri) == "file" and not uri.removeprefix("file://").startswith("/"):
            raise ConfigError(
                f"run_uri = {uri!r} is a path relative to each pod's own folder, so no other pod would find the run; "
                "use s3://bucket/prefix, or the absolute path of a folder on a volume that all pods have"
            )
        settings["run"]["uri"] = uri
    return uri, settings
