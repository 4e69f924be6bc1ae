"""Rows of training data from a table: CSV, or Parquet with the extra `arrow`.

Columns: ``path`` (relative to the table's folder, or absolute), ``label``, and, if wanted, ``split`` and
``group``. Nothing here looks at an image; a complaint names table and line (in Parquet the row, from 1).
"""

from __future__ import annotations

import csv
import importlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyrtrav.errors import ConfigError, DatasetError, nearest_name

SPLITS = ("train", "val", "test")

COLUMNS = ("path", "label", "split", "group")

PARQUET = (".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class Row:
    """One image as the table or the folders name it, before it is known whether it can be opened."""

    path: str
    """Absolute."""
    key: str
    """Relative to the table or the data folder, with ``/``: what decides the side of the split."""
    label: str
    split: str | None
    group: str | None
    source: str
    """``table:line``, or the class folder: what a message names."""


def is_table(path: str) -> bool:
    """Whether the name says that this is a table."""
    return path.lower().endswith((".csv", *PARQUET))


def relative_key(path: str, folder: str) -> str:
    """Return the path relative to the folder, with ``/``."""
    below = os.path.join(folder, "")
    if path.startswith(below) and os.path.normpath(path) == path:
        return path[len(below) :].replace(os.sep, "/")  # the usual case: what follows asks the system twice
    return os.path.relpath(path, folder).replace(os.sep, "/")


@dataclass(frozen=True, slots=True)
class _Table:
    path: str
    columns: list[str]
    records: list[tuple[str, list[str]]]
    """Where (``table:line``), and the values in the order of the columns."""
    unused: list[str]
    """Further columns, which are ignored."""


def read_table(path: str, warnings: list[str]) -> list[Row]:
    """Return every row in the table's order, whatever its path leads to; adds to the warnings.

    Args:
        path: absolute.

    Raises:
        DatasetError: missing columns, a damaged line, an empty path or label, an unknown split.
        ConfigError: a Parquet file without pyarrow.
    """
    table = _read_parquet(path) if path.lower().endswith(PARQUET) else _read_csv(path)
    _check_columns(table)
    if not table.records:
        raise DatasetError(f"{path}: holds no rows below its header; add one per image")
    _check_filled(table)
    if table.unused:
        warnings.append(f"{path}: columns that are not used: {', '.join(table.unused)}")
    return [_row(table, where, values) for where, values in table.records]


def _row(table: _Table, where: str, values: Sequence[str]) -> Row:
    fields = dict(zip(table.columns, values, strict=True))
    folder = os.path.dirname(table.path)
    image = os.path.normpath(os.path.join(folder, fields["path"]))
    if "\0" in image:
        raise DatasetError(f"{where}: the path holds a zero byte; the table may be damaged")
    split, group = fields.get("split") or None, fields.get("group") or None
    if split is not None and split not in SPLITS:
        raise DatasetError(f"{where}: unknown split {split!r}{nearest_name(split, SPLITS)}")
    return Row(image, relative_key(image, folder), fields["label"], split, group, where)


def _check_columns(table: _Table) -> None:
    names = [name for name in table.columns if name]
    for name in names:
        if names.count(name) > 1:
            raise DatasetError(f"{table.path}:1: the column {name!r} stands twice; keep one")
    missing = [name for name in ("path", "label") if name not in names]
    if missing:
        found = ", ".join(map(repr, dict.fromkeys([*names, *table.unused])))
        needed = " and ".join(repr(name) for name in missing)
        hint = "; separate columns by commas" if any(mark in "".join(names) for mark in ";\t|") else ""
        raise DatasetError(f"{table.path}:1: no column {needed}; it has {found or 'none'}{hint}")


def _check_filled(table: _Table) -> None:
    """A path and a label stand in every row, a split in all rows or in none; groups are free."""
    for name in ("path", "label", "split"):
        if name not in table.columns:
            continue
        column = table.columns.index(name)
        empty = [where for where, values in table.records if not values[column]]
        if not empty or (name == "split" and len(empty) == len(table.records)):
            continue
        others = f" (and in {len(empty) - 1} other rows)" if len(empty) > 1 else ""
        hint = "fill it in or remove the row" if name != "split" else "name train, val or test in every row or in none"
        raise DatasetError(f"{empty[0]}: the {name} is empty{others}; {hint}")


def _read_csv(path: str) -> _Table:
    lines = list(csv_lines(path))
    if not lines:
        raise DatasetError(f"{path}: is empty; its first line must name the columns path,label")
    columns, records = lines[0][1], []
    for line, values in lines[1:]:
        if len(values) != len(columns):
            hint = "; put quotes around a value that holds a comma" if len(values) > len(columns) else ""
            raise DatasetError(
                f"{path}:{line}: {len(values)} values where the header names {len(columns)} columns{hint}"
            )
        records.append((f"{path}:{line}", values))
    return _Table(path, columns, records, [name for name in columns if name and name not in COLUMNS])


def csv_lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield every record that is not blank, with the line on which it begins.

    Raises:
        DatasetError: no UTF-8 text, or no CSV; names the line.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), skipinitialspace=True, strict=True)
    line = 1
    try:
        for values in reader:
            values = [value.strip() for value in values]
            if values not in ([], [""]):
                yield line, values
            line = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(f"{path}:{line}: not a line of CSV ({error}); check its quotes") from error


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The offset counts from behind a byte order mark, which holds no line break.
        line = error.object[: error.start].count(b"\n") + 1
        raise DatasetError(f"{path}:{line}: not UTF-8 text; save the table as CSV in UTF-8") from error


def _read_parquet(path: str) -> _Table:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(f"{path}: Parquet needs the extra `arrow`: pip install 'pyrtrav[arrow]'") from error
    try:
        file = parquet.ParquetFile(path)
        names = [str(name) for name in file.schema_arrow.names]
        columns = [name for name in names if name in COLUMNS]
        values = file.read(columns=columns).to_pydict()
    except Exception as error:  # pyarrow's own types, which are known only where it is installed
        raise DatasetError(f"{path}: not a readable Parquet file: {error}") from error
    rows = zip(*(values[name] for name in columns), strict=True)
    records = [
        (f"{path}:{line}", [_cell(path, line, name, value) for name, value in zip(columns, row, strict=True)])
        for line, row in enumerate(rows, 1)
    ]
    return _Table(path, columns, records, [name for name in names if name not in COLUMNS])


def _cell(path: str, line: int, column: str, value: object) -> str:
    """A value as text; a missing one is empty. A float is refused: 1.0 or nan is an accident, not a label."""
    if value is None:
        return ""
    if isinstance(value, str | int):
        return str(value).strip()
    raise DatasetError(f"{path}:{line}: {column} is {value!r}, a {type(value).__name__}; store the column as text")
