from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from spin_components.errors import ConfigError
from spin_components.training.extensions import extensions_compiled, remove_stale_locks


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the lock of an extension is, in a folder of extensions for this test."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "py311_cpu" / "deepspeed_shm_comm").mkdir(parents=True)
    return tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"


def test_a_lock_that_is_held_stays(lock: Path) -> None:
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    assert remove_stale_locks() == []
    assert lock.exists()
    baton.release()


def test_the_lock_of_a_killed_process_is_removed(lock: Path) -> None:
    if not (child := os.fork()):
        FileBaton(str(lock)).try_acquire()
        os._exit(0)  # without `release`, as when it is killed
    os.waitpid(child, 0)
    assert lock.exists()
    assert remove_stale_locks() == [lock]
    assert FileBaton(str(lock)).try_acquire()


def test_without_extensions_there_is_nothing_to_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    assert remove_stale_locks() == []


def test_the_folder_is_the_one_that_torch_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch.utils.cpp_extension import get_default_build_root

    from spin_components.training import extensions

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert str(extensions._root()) == get_default_build_root()


@pytest.mark.parametrize(
    ("compiler", "source", "reason"),
    [
        ("no-such-compiler", "", r"no-such-compiler: (command )?not found"),
        ("g++", "not C++;", r"error: "),
    ],
)
def test_what_an_extension_cannot_be_compiled_for_is_named(
    lock: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, source: str, reason: str
) -> None:
    from torch.utils.cpp_extension import load

    monkeypatch.setenv("CXX", compiler)
    file = lock.with_name("shm.cpp")
    file.write_text(source, "utf-8")
    message = rf"its extension shm_comm\w* .* failed: .*({reason}).*; install g\+\+ and ninja"
    with pytest.raises(ConfigError, match=message), extensions_compiled():
        load(name="shm_comm", sources=[str(file)], build_directory=str(lock.parent))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="of another kind"), extensions_compiled():
        raise RuntimeError("of another kind")
