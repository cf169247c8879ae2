"""The process that runs the DAG on this machine, through `kfp.local`; `spin_pipeline.local.run` starts it.

`python -m spin_pipeline.local.driver PARENT` takes a run's settings as JSON from standard input. It imports torch
once and runs each task in a fork of itself, because a new Python for each would import torch for several seconds
again. Forked tasks share imported code only, and hold the run's lock as long as they live.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

from spin_components.runtime.process import configure_logging, die_with_parent, ending, exit_code_of, fork
from spin_components.settings.settings import Settings
from spin_components.store.lease import RUNNER


def main(parent: int) -> int:
    """Run the whole DAG; returns 1 where a task failed.

    Args:
        parent: pid of the process that started this one, with which it ends.
    """
    die_with_parent(parent)
    os.environ[RUNNER] = str(os.getpid())
    settings = Settings.model_validate(json.load(sys.stdin))
    from kfp import local
    from kfp.local import subprocess_task_handler

    from spin_components.settings.form import form_values
    from spin_pipeline.dag import build

    warnings.filterwarnings("ignore", message="You may be attemping to run a task that uses custom")
    _import_torch()
    subprocess_task_handler.run_local_subprocess = run_task  # KFP has no setting for it
    with tempfile.TemporaryDirectory(prefix="spin-kfp-") as folder:
        runner = local.SubprocessRunner(use_venv=False)
        local.init(runner, pipeline_root=f"{folder}/outputs", workspace_root=f"{folder}/workspace")
        try:
            build(settings, parallelism=1)(**form_values(settings))
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            return 1
    return 0


def run_task(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
    """Run a task's KFP executor in a fork of this process; stands in for `kfp.local`'s `run_local_subprocess`.

    Args:
        full_command: a shell command that writes the component's source to a file and starts KFP's executor on it, that
            source, and the executor's arguments.
        env_vars: of the task's container.

    Returns: the exit code.
    """
    from kfp.dsl.executor_main import executor_main

    first = full_command.index("--executor_input")
    source, arguments = full_command[first - 1], full_command[first:]
    if (child := fork()) == 0:
        with ending(), tempfile.TemporaryDirectory(prefix="spin-task-") as folder:
            os.environ.update(env_vars or {})
            logging.getLogger().handlers.clear()  # those of `kfp.local`
            configure_logging()
            module = Path(folder, "ephemeral_component.py")
            module.write_text(source, encoding="utf-8")
            sys.argv = ["executor_main", "--component_module_path", str(module), *arguments]
            executor_main()
    code = exit_code_of(child)
    if code < 0:
        sys.stderr.write(f"the task's process was ended by signal {-code} (killed, or out of memory)\n")
    return code


def _import_torch() -> None:
    """Import what steps with a model need; nothing is computed, so that no thread or device is open at a fork."""
    import minio
    import pyarrow.parquet
    import tenacity
    import torch

    from spin_components.model.loading import import_generation

    import_generation()
    import transformers.models.llama.modeling_llama
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin

    del torch, transformers, pyarrow, minio, tenacity, AutoModelForCausalLM, AutoTokenizer, GenerationMixin


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
