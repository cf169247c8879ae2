"""The Dockerfiles, without building them: names, sources, shared parts and requirements."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
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


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """Write a wheel without content."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", metadata(name, version, *requires))
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def metadata(name: str, version: str, *requires: str) -> str:
    """The content of a package's METADATA."""
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    return "\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires)]) + "\n"


def test_a_dependency_replaces_a_package_of_the_base_only_by_a_newer_one_that_it_needs(tmp_path: Path) -> None:
    """With packages of no content, and a base that is a folder at the end of the path."""
    root, base, wheels = (tmp_path / name for name in ("src", "base", "wheels"))
    (root / "docker" / "cpu").mkdir(parents=True)
    wheels.mkdir()
    for file in ("environment.py", "cpu/no-deps.txt"):
        shutil.copy(ROOT / "docker" / file, root / "docker" / file)
    (root / "sitecustomize.py").write_text(f"import sys\n\nsys.path.append({str(base)!r})\n", "utf-8")
    # newer than x-kfp allows, older than it pins, older than it needs, older than the project needs
    versions = {"x-protobuf": "7.1", "x-requests": "2.32.5", "x-setuptools": "70.0", "x-urllib3": "1.26"}
    in_base = {"vllm": "0.33.0", **versions}
    for name, version in in_base.items():
        info = base / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(metadata(name, version), "utf-8")
    wheel(wheels, "x-kfp", "2.17.0", "x-protobuf<7,>=6.31", "x-requests==2.33.0", "x-setuptools>=77")
    for name, version in (
        ("x-protobuf", "6.33.6"),
        ("x-requests", "2.33.0"),
        ("x-setuptools", "78.1.1"),
        ("x-urllib3", "2.7"),
    ):
        wheel(wheels, name, version)
    project = '[project]\ndependencies = ["x-kfp", "x-urllib3>=2"]\n[project.optional-dependencies]\ntrain = []\n'
    (root / "pyproject.toml").write_text(project, "utf-8")
    (root / "constraints.txt").write_text("x-kfp==2.17.0\nx-protobuf==6.33.6\nx-setuptools==78.1.1\n", "utf-8")
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))},
        "SPIN_ENVIRONMENT": str(tmp_path / "spin"),
        "PYTHONPATH": str(root),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }

    python = str(Path(sys.base_prefix, "bin", "python3"))  # an image's python is in no virtual environment

    def run(*arguments: str) -> str:
        command = [python, str(root / "docker" / "environment.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("create")
    # before Python 3.12 also the setuptools that a virtual environment begins with
    assert re.search(
        r"left to the base: (setuptools \S+, )?x-protobuf 7\.1, x-requests 2\.32\.5\n", run("install", "train")
    )
    run("check")
    (site,) = (tmp_path / "spin" / "lib").glob("python*/site-packages")
    own = {path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")}
    assert {name for name in own if name.startswith("x_")} == {"x_kfp-2.17.0", "x_setuptools-78.1.1", "x_urllib3-2.7"}


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
