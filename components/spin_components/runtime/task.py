"""The process that KFP starts for a task on a cluster: `python3 -m spin_components.runtime.task ARGUMENTS`.

A compiled pipeline names the component's function and not its source, which Argo would store eight times a task. KFP's
executor runs the function of the module in the image.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence

from spin_components.errors import ConfigError, SpinError
from spin_components.runtime.process import configure_logging, ending, explain_end

MODULES = {
    **{name: f"spin_components.{name}.component" for name in ("prepare", "generate", "ref_logprob", "validate")},
    **{name: f"spin_components.{name}.component" for name in ("checkpoint", "evaluate", "result")},
    **{
        f"{name}{where}": f"spin_components.{name}.component"
        for name in ("train_epoch", "warm_up", "control")
        for where in ("", "_on_nodes")
    },
    "evaluate_to_decide": "spin_components.evaluate.component",
    **dict.fromkeys(("generate_and_score", "train_and_validate"), "spin_components.fused.component"),
}
"""Module of each component, by the name of its function."""


def main(arguments: Sequence[str]) -> None:
    """Run a component's function.

    Args:
        arguments: those of KFP's executor: `--executor_input JSON --function_to_execute NAME`.

    Raises:
        ConfigError: this image has no such component.
        SystemExit: the step failed.
    """
    configure_logging()
    name = arguments[arguments.index("--function_to_execute") + 1]
    found = importlib.util.find_spec(MODULES[name]) if name in MODULES else None
    if found is None or found.origin is None:
        raise ConfigError(
            f"this image has no component {name!r}, only {', '.join(sorted(MODULES))}; use the image of the version "
            "that the pipeline was compiled with (cluster.image_tag)"
        )
    os.environ["_KFP_RUNTIME"] = "true"
    from kfp.dsl.executor_main import executor_main

    sys.argv = ["task", "--component_module_path", found.origin, *arguments]
    executor_main()


if __name__ == "__main__":
    with ending():
        try:
            main(sys.argv[1:])
        except SpinError as error:
            name = sys.argv[-1] if sys.argv[-1] in MODULES else "the task"
            explain_end(name.replace("_", "-"), f"{type(error).__name__}: {error}")
            raise SystemExit(error.exit_code) from error
