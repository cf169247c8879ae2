"""The Dockerfiles, without building them: names, sources, shared parts and requirements."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest

from spin_components import __version__, images

ROOT = Path(__file__).parents[3]
DOCKERFILES = {path.stem: path for path in (ROOT / "docker").glob("*.Dockerfile")}
SHARED = "# Identical in all images from here on"


def lines(name: str) -> list[str]:
    """The instructions of a Dockerfile, with continued lines joined."""
    text = DOCKERFILES[name].read_text("utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture
def environment() -> ModuleType:
    """The module `docker/environment.py`, which is in no package."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "docker" / "environment.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_builds_the_images_that_a_pipeline_names() -> None:
    made = subprocess.run(["make", "--dry-run", "images"], cwd=ROOT, capture_output=True, text=True, check=True)
    built = dict(re.findall(r"--file docker/(\w+)\.Dockerfile --tag (\S+)", made.stdout))
    assert built == {"cpu": images.CPU, "train": images.TRAIN, "generate": images.GENERATE}
    assert built.keys() == DOCKERFILES.keys()
    assert made.stdout.count(f"--build-arg VERSION={__version__} ") == 3


def test_make_takes_a_prefix_a_tag_bases_and_secrets() -> None:
    arguments = ["PREFIX=registry.example/team", "TAG=7", "BASE=mine:1", "VLLM_BASE=vllm:2", "PIP_CONF=/a", "PIP_CA=/b"]
    command = ["make", "--dry-run", "images", *arguments]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    builds = [line for line in made.stdout.splitlines() if " build " in line]
    assert len(builds) == 3
    for build in builds:
        name = re.findall(r"--tag registry\.example/team/(\w+):7 ", build)[0]
        assert f"--build-arg BASE={'vllm:2' if name == 'generate' else 'mine:1'} " in build
        assert "--secret id=pip,src=/a --secret id=ca,src=/b" in build


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_copied_source_exists_and_is_sent_to_the_builder(name: str) -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    for line in lines(name):
        if not line.startswith("COPY ") or "--from=" in line:
            continue
        for source in line.split()[1:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in rules, source
            assert not any(fnmatch(source, rule) for rule in rules[1:] if not rule.startswith("!")), source


def test_the_run_time_stage_is_the_same_in_all() -> None:
    tails = {path.read_text("utf-8").partition(SHARED)[2] for path in DOCKERFILES.values()}
    assert len(tails) == 1
    (tail,) = tails
    assert "\nUSER 1000:1000\n" in tail
    assert not re.search(r"apt-get|pip install", tail)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_base_image_is_an_argument_with_a_named_version(name: str) -> None:
    first, *rest = lines(name)
    base = re.fullmatch(r"ARG BASE=[\w./-]+:(?P<tag>[\w.-]+)(@sha256:[0-9a-f]{64})?", first)
    assert base and base["tag"] != "latest"
    assert [line for line in rest if line.startswith("FROM ")] == ["FROM ${BASE} AS build", "FROM ${BASE}"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_pip_is_configured_by_secrets_alone(name: str) -> None:
    for line in lines(name):
        if re.search(r"pip install|environment.py (torch|install)", line):
            assert line.startswith("RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca"), (
                line
            )


def test_an_image_installs_what_pyproject_names(environment: ModuleType) -> None:
    def name(requirement: str) -> str:
        return re.split(r"[^\w-]", requirement, maxsplit=1)[0]

    plain = environment.requirements([], [])
    assert {"kfp", "minio", "pyarrow"} <= {name(line) for line in plain}
    with_train = environment.requirements(["train"], ["DeepSpeed"])
    added = {name(line) for line in with_train} - {name(line) for line in plain}
    assert {"torch", "transformers", "safetensors"} <= added
    assert "deepspeed" not in added
    with pytest.raises(SystemExit, match=r"pyproject\.toml has no extra trian; it has train"):
        environment.requirements(["trian"], [])


def test_a_pin_holds_where_the_bases_version_is_excluded(environment: ModuleType) -> None:
    base = [{"name": name, "version": version} for name, version in (("Transformers", "4.1"), ("torch", "2.9.1+cpu"))]
    assert environment.excluded(base, ["transformers>=4.5,<6", "torch>=2.5", "numpy"]) == {"transformers"}
    assert "numpy" not in environment.excluded(base, environment.requirements())


def test_the_cpu_image_refuses_a_build_of_torch_before_it_fetches_anything() -> None:
    steps = lines("cpu")
    refusal = next(index for index, line in enumerate(steps) if "environment.py torch cpu" in line)
    assert refusal < next(index for index, line in enumerate(steps) if "apt-get" in line)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_extras_and_exclusions_of_a_dockerfile_exist(environment: ModuleType, name: str) -> None:
    calls = re.findall(
        r"environment\.py install ([a-z ]+?)(?: --without ([a-z ]+?))? *(?:&&|$)", "\n".join(lines(name)), re.MULTILINE
    )
    assert len(calls) == 1
    extras, without = (words.split() for words in calls[0])
    everything = environment.requirements(extras, [])
    assert len(environment.requirements(extras, without)) == len(everything) - len(without)
