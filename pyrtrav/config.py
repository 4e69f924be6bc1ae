"""From names and values, as files and ``--set`` give them, to checked settings."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

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
    _check_truth(config, values)
    try:
        made: T = pydantic.TypeAdapter(config).validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            # A check of the dataclass's own, which pydantic wraps because ours are ValueErrors.
            raise ConfigError(str(first["ctx"]["error"])) from error
        raise ConfigError(f"option {first['loc'][0]!r}: {first['msg']}, got {first['input']!r}") from error
    return made


def _check_truth(config: type[Any], values: Mapping[str, Any]) -> None:
    """Refuse true and false where a number is meant: pydantic would take them for 1 and 0."""
    kinds = get_type_hints(config)
    for name, value in values.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(part, bool) for part in parts) and not _admits_truth(kinds[name]):
            raise ConfigError(f"option {name!r}: is no matter of true or false, got {value!r}")


def _admits_truth(kind: Any) -> bool:
    return kind in (bool, Any) or any(map(_admits_truth, get_args(kind)))


def check_range(
    options: object,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse fields that are no finite numbers of a range; of a tuple each must be one, and None is let through.

    Args:
        options: a config.
        names: of its fields.
        least, most: ends that belong to the range.
        above, below: ends that do not.

    Raises:
        ConfigError: names field, range and value.
    """
    ends = {"{} or more": least, "above {}": above, "at most {}": most, "below {}": below}
    words = [text.format(f"{end:g}") for text, end in ends.items() if end is not None]
    for name in names:
        value = getattr(options, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is None:
                continue
            inside = (
                (least is None or number >= least)
                and (above is None or number > above)
                and (most is None or number <= most)
                and (below is None or number < below)
            )
            if isinstance(number, bool) or not (inside and math.isfinite(number)):
                finite = [] if most is not None or below is not None or math.isfinite(number) else ["finite"]
                raise ConfigError(f"{name} must be {' and '.join(words + finite)}, got {value}")


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
