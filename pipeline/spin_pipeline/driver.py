"""The process that runs the DAG on this machine, through `kfp.local`; started and watched by `local`.

`python -m spin_pipeline.driver SETTINGS.json LOCK` runs each task as a process of this environment. Its own word on how
that ended counts for little: `local` reads the run's state instead.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from spin_components.process import RUNNER, WARM_SERVER, die_with_parent
from spin_components.settings import Settings


def drive(settings: Settings) -> None:
    """Run the whole DAG; raises RuntimeError where a task failed."""
    from kfp import local

    from spin_pipeline.config import pipeline_parameters
    from spin_pipeline.dag import build

    warnings.filterwarnings("ignore", message="You may be attemping to run a task that uses custom")
    with tempfile.TemporaryDirectory(prefix="spin-kfp-") as folder:
        runner = local.SubprocessRunner(use_venv=False)
        local.init(runner, pipeline_root=f"{folder}/outputs", workspace_root=f"{folder}/workspace")
        build(settings, parallelism=1)(**pipeline_parameters(settings))


def main(settings_path: Path, lock: int) -> int:
    """Start the warm server beside the DAG and run it.

    Args:
        settings_path: the run's settings as JSON.
        lock: descriptor of the run's lock; the server and the steps it forks keep it open.
    """
    die_with_parent()
    os.environ[RUNNER] = str(os.getpid())
    settings = Settings.model_validate(json.loads(settings_path.read_text("utf-8")))
    with tempfile.TemporaryDirectory(prefix="spin-") as folder:
        address = Path(folder, "warm")
        command = [sys.executable, "-m", "spin_components.warm", str(address)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(lock,))
        os.environ[WARM_SERVER] = str(address)
        try:
            importlib.import_module("kfp.local")  # a second or two, in which the server imports torch
            assert server.stdout is not None
            server.stdout.readline()  # it listens, or has died: then the first task says so
            drive(settings)
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        finally:
            server.kill()
            server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
