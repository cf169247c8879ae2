"""Read a run's configuration: a TOML file and overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from datetime import date, time
from pathlib import Path
from typing import Any

from spin_components.errors import ConfigError
from spin_components.settings.mistakes import parse
from spin_pipeline.deploy.cluster_settings import Configuration

DEFAULT = "demo"
_PACKAGE = Path(__file__).parent


def shipped_configs() -> dict[str, Path]:
    """Paths of the configurations that come with the package, by name."""
    folders = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    folder = next(folder for folder in folders if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_config(name_or_path: str) -> Path:
    """The path of a configuration: of a file, or of a shipped one by its name.

    Raises:
        ConfigError: there is neither.
    """
    shipped = shipped_configs()
    path = Path(name_or_path)
    if path.is_file():
        return path
    if name_or_path in shipped:
        return shipped[name_or_path]
    raise ConfigError(f"--config {name_or_path}: no such file; shipped by name: {', '.join(shipped)}")


def load_settings(
    config: str | None = None, overrides: Sequence[str] = (), run_uri: str | None = None
) -> Configuration:
    """Read and check a configuration.

    Args:
        config: a TOML file or a shipped name; the demo by default.
        overrides: `section.key=value`, each value as in TOML, or bare text.
        run_uri: replaces `run.uri`.

    Raises:
        ConfigError: listing every mistake.
    """
    path = find_config(config or DEFAULT)
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except RecursionError as error:
        raise ConfigError(f"{path} is not TOML: nested too deeply to be read; expected tables of settings") from error
    except ValueError as error:  # no TOML, no UTF-8, or a number of too many digits
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return check_settings(values, overrides, run_uri, source=str(path))


def check_settings(
    values: dict[str, Any], overrides: Sequence[str] = (), run_uri: str | None = None, *, source: str
) -> Configuration:
    """Apply overrides to tables of sections and check the result; see `load_settings`."""
    for override in overrides:
        _apply(values, override)
    if run_uri:
        _put(values, ["run", "uri"], run_uri, source=f"--run-uri {run_uri}")
    return parse(Configuration, values, source=f"{source} with --set" if overrides else source)


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"--set {override}: expected section.key=value, for example spin.max_iterations=2")
    _put(values, [section, *key.split(".")], _value(text), source=f"--set {override}")


def _value(text: str) -> Any:
    """Parse a TOML value; anything else, and a date or time, is text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, (date, time)) else value


def _put(values: dict[str, Any], path: list[str], value: Any, *, source: str) -> None:
    table = values
    for depth, part in enumerate(path[:-1], start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: {'.'.join(path[:depth])} is {table!r}, expected a table")
    table[path[-1]] = value
