"""The decorator of the project's KFP components.

KFP's executor sets `_KFP_RUNTIME`, under which `kfp.dsl` has its artifact types but no decorator: importing that part
takes a twentieth of the time. Modules of components can be imported there too; their functions then stay plain ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kfp import dsl


def component(base_image: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a function a KFP component of an image that has all packages.

    Args:
        base_image: of the task's container.
        options: further ones of `kfp.dsl.component`.
    """
    decorate = getattr(dsl, "component", None)
    if decorate is None:
        return lambda function: function
    return decorate(base_image=base_image, install_kfp_package=False, **options)  # type: ignore[no-any-return]
