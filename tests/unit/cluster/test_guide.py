"""manifests/README.md: its commands parse, its files exist, its overlay builds."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from spin_pipeline.cli import _parser
from spin_pipeline.cluster.preflight.accounts import STEP_RIGHTS, TRAIN_JOB_RIGHTS
from spin_pipeline.commands.options import settings_of
from support.built import MANIFESTS, of_kind
from support.kubectl import build
from support.kubernetes_rights import Access, User, may, service_account
from support.kubernetes_server import kubernetes_server

ROOT = MANIFESTS.parent
README = (MANIFESTS / "README.md").read_text("utf-8")


def commands(word: str) -> list[list[str]]:
    """The guide's commands that start with a word, split; `"$@"` is replaced by the last `set --`."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)
    matching, given = [], []
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["set", "--"]:
            given = words[2:]
        elif words[:1] == [word]:
            matching.append([part for one in words for part in (given if one == "$@" else [one])])
    return matching


def test_every_spin_pipeline_command_of_the_guide_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    listed = commands("spin-pipeline")
    assert {command[1] for command in listed} >= {"preflight", "submit", "schedule"}
    for command in listed:
        options = _parser().parse_args(command[1:])
        if "config" in options:
            settings_of(options)


def test_every_file_and_target_that_the_guide_names_exists() -> None:
    for name in re.findall(r"(?<![/\w])manifests/[\w./-]*\w", README):
        assert (ROOT / name).exists() or "/alice/" in name, name
    for command in commands("make"):
        arguments = [word if "=" not in word else f"{word.partition('=')[0]}=x" for word in command[1:]]
        done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_guides_overlay_for_a_users_namespace_moves_everything(kubectl: Path, tmp_path: Path) -> None:
    (text,) = re.findall(r"^ *```yaml\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)
    folder = tmp_path / "manifests" / "overlays" / "alice"
    folder.mkdir(parents=True)
    (tmp_path / "manifests" / "base").symlink_to(MANIFESTS / "base")
    (folder / "kustomization.yaml").write_text(text, "utf-8")
    items = build(kubectl, folder)
    assert not of_kind(items, "Namespace")  # the profile has its own namespace
    assert {item["metadata"].get("namespace", "alice") for item in items} == {"alice"}
    bindings = of_kind(items, "RoleBinding", "ClusterRoleBinding")
    assert {subject["namespace"] for item in bindings for subject in item["subjects"]} == {"alice"}
    with kubernetes_server() as server:
        server.put(*items)
        for right in (*STEP_RIGHTS, *TRAIN_JOB_RIGHTS):
            access = Access(right.verbs[0], right.group, right.resource, "alice", right.name)
            assert may(server.objects, service_account("alice", "default-editor"), access)
            assert not may(server.objects, service_account("alice", "pipeline-runner"), access)
        assert may(server.objects, service_account("alice", "spin-submitter"), Access("list", "", "nodes"))
        assert not may(server.objects, User("somebody"), Access("list", "", "nodes"))
