from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spin_components.errors import ConfigError
from spin_pipeline.config import DEFAULT, find_config, load_settings, shipped_configs

MINIMAL = '[model]\nbase = "m"\n[data]\ntrain = "d"\n'
HEAVY = ("torch", "transformers", "vllm", "deepspeed", "kfp", "kubernetes", "pyarrow", "numpy")


def written(folder: Path, text: str = MINIMAL) -> str:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_configuration_loads_by_name_and_by_path(name: str) -> None:
    assert load_settings(name) == load_settings(str(shipped_configs()[name]))


def test_the_shipped_configurations_are_all_in_the_folder() -> None:
    folder = Path(__file__).parents[2] / "pipeline" / "configs"
    assert set(shipped_configs()) == {path.stem for path in folder.glob("*.toml")} >= {"tiny", DEFAULT}


def test_the_default_configuration_is_the_demo() -> None:
    assert load_settings() == load_settings(DEFAULT)


def test_an_unknown_configuration_is_named_with_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config .*absent\.toml: no such file; shipped by name: .*demo.*tiny"):
        find_config(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize("content", [b"[run\n", b"\xff\xfe", b"run = 1\nrun = 2\n"])
def test_invalid_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml is not TOML"):
        load_settings(str(path))


def test_mistakes_name_the_file_and_whether_overrides_were_applied(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL + "[spin]\nmax_epochs = 0\n")
    with pytest.raises(ConfigError, match=r"^1 mistake in .*run\.toml:\n  spin\.max_epochs = 0"):
        load_settings(path)
    with pytest.raises(ConfigError, match=r"^1 mistake in .*run\.toml with --set:\n  spin\.max_epochs = 99"):
        load_settings(path, ["spin.max_epochs=99"])


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("spin.max_iterations=2", "spin", "max_iterations", 2),
        (" spin.max_iterations = 2", "spin", "max_iterations", 2),
        ("training.lr=1e-6", "training", "lr", 1e-6),
        ("training.warmup=1", "training", "warmup", 1),
        ("training.warmup=1.0", "training", "warmup", 1.0),
        ("training.gradient_checkpointing=true", "training", "gradient_checkpointing", True),
        ("model.base=/models/a b", "model", "base", "/models/a b"),
        ("model.base=builtin:tiny-llama", "model", "base", "builtin:tiny-llama"),
        ('model.base="quoted"', "model", "base", "quoted"),
        ("data.train=s3://bucket/x=y.jsonl", "data", "train", "s3://bucket/x=y.jsonl"),
        ("data.validation=", "data", "validation", ""),
        ("run.name=007", "run", "name", "007"),
        ("run.max_time=00:03:50:00", "run", "max_time", "00:03:50:00"),
        ("run.max_time=90", "run", "max_time", "90"),
        ('generation.stop=["###", "\\n\\n"]', "generation", "stop", ["###", "\n\n"]),
        ("spin.ref_policy_kl_penalty=[0.1, 0.1, 5.0]", "spin", "ref_policy_kl_penalty", [0.1, 0.1, 5.0]),
        ("generation.sampling_params.temperature=0.5", "generation", "temperature", 0.5),
        ("generation.length_params={max_length = 7}", "generation", "max_new_tokens", 7),
    ],
)
def test_overrides(tmp_path: Path, override: str, section: str, name: str, value: object) -> None:
    parsed = getattr(getattr(load_settings(written(tmp_path), [override]), section), name)
    assert (parsed, type(parsed)) == (value, type(value))


def test_the_last_override_wins_and_other_settings_come_from_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL + "[spin]\nmax_epochs = 2\nmax_iterations = 4\n")
    settings = load_settings(path, ["spin.max_epochs=3", "spin.max_epochs=5"])
    assert (settings.spin.max_epochs, settings.spin.max_iterations) == (5, 4)


@pytest.mark.parametrize("override", ["max_iterations=2", "spin.max_iterations", "spin.=2", ".x=2", "=", ""])
def test_an_override_without_section_key_and_value_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected section\.key=value, for example"):
        load_settings(written(tmp_path), [override])


@pytest.mark.parametrize(
    "override", ["spin.max_epochs.x=1", "model.base.x=1", "generation.sampling_params.top_k.x=1", "spni.max_epochs=1"]
)
def test_an_override_below_a_value_is_refused(tmp_path: Path, override: str) -> None:
    path = written(tmp_path, MINIMAL + "[spin]\nmax_epochs = 2\n[generation.sampling_params]\ntop_k = 5\n")
    with pytest.raises(ConfigError):
        load_settings(path, [override])


def test_the_run_uri_option_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL + '[run]\nuri = "a"\nseed = 3\n')
    settings = load_settings(path, run_uri="b")
    assert (settings.run.uri, settings.run.seed) == ("b", 3)
    assert load_settings(written(tmp_path), run_uri="b").run.uri == "b"


def test_a_section_that_is_not_a_table_is_refused_with_a_run_uri(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run"):
        load_settings(written(tmp_path, "run = 3\n" + MINIMAL), run_uri="b")


@pytest.mark.parametrize("module", ["spin_pipeline.config", "spin_pipeline.cli"])
def test_reading_a_configuration_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_wrong_command_is_refused_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys; from spin_pipeline.cli import main; code = main(['run', '--set', 'spin.max_epochs=0']);"
        f"print(code, *[name for name in {HEAVY} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["2"]
    assert done.stderr.startswith("spin-pipeline: ConfigError: 1 mistake in ")
