"""From names and values, as files and ``--set`` give them, to checked settings."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from pyrtrav.errors import ConfigError, nearest_name

T = TypeVar("T")


def make_config(config: type[T], values: Mapping[str, Any]) -> T:
    """Build a frozen dataclass from plain values, converted and checked by its annotations.

    Raises:
        ConfigError: an unknown name (with the nearest known one), or a value that does not fit.
    """
    known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown option {name!r}{nearest_name(name, known)}")
    try:
        made: T = pydantic.TypeAdapter(config).validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            # A check of the dataclass's own, which pydantic wraps because ours are ValueErrors.
            raise ConfigError(str(first["ctx"]["error"])) from error
        raise ConfigError(f"option {first['loc'][0]!r}: {first['msg']}, got {first['input']!r}") from error
    return made


def field_names(config: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read options from a TOML file.

    Raises:
        ConfigError: the file cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; a value is a TOML value (number, true, [1, 2], "text") or else plain text."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{assignment!r} is not of the form key=value")
        try:
            value = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        values[key.strip()] = value
    return values
