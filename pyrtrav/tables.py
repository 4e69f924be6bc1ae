"""Tables that name images, a row each: CSV, or Parquet with the extra `arrow`.

Nothing here looks at an image; a complaint names table and line (in Parquet the row, from 1).
"""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyrtrav.errors import ConfigError, DatasetError

PARQUET = (".parquet", ".pq")


def is_table(path: str) -> bool:
    """Whether the name says that this is a table."""
    return path.lower().endswith((".csv", *PARQUET))


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a table as text."""

    path: str
    columns: list[str]
    records: list[tuple[str, list[str]]]
    """Where (``table:line``), and the values in the order of the columns."""
    unused: list[str]
    """Further columns, which are ignored."""


def parse_table(path: str, known: Sequence[str], *, needed: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    """Return every row of a table.

    Args:
        path: absolute.
        known: columns that are used; others are not read.
        needed: columns that must be there.
        numbers: columns that may hold numbers with a fraction.

    Raises:
        DatasetError: missing columns, a damaged line, no rows.
        ConfigError: a Parquet file without pyarrow.
    """
    is_parquet = path.lower().endswith(PARQUET)
    table = _read_parquet(path, known, numbers) if is_parquet else _read_csv(path, known, needed)
    _check_columns(table, needed)
    if not table.records:
        raise DatasetError(f"{path}: holds no rows below its header; add one per image")
    return table


def _check_columns(table: Table, needed: Sequence[str]) -> None:
    names = [name for name in table.columns if name]
    for name in names:
        if names.count(name) > 1:
            raise DatasetError(f"{table.path}:1: the column {name!r} stands twice; keep one")
    missing = [name for name in needed if name not in names]
    if missing:
        found = ", ".join(map(repr, dict.fromkeys([*names, *table.unused])))
        wanted = " and ".join(repr(name) for name in missing)
        hint = "; separate columns by commas" if any(mark in "".join(names) for mark in ";\t|") else ""
        raise DatasetError(f"{table.path}:1: no column {wanted}; it has {found or 'none'}{hint}")


def _read_csv(path: str, known: Sequence[str], needed: Sequence[str]) -> Table:
    lines = list(csv_lines(path))
    if not lines:
        raise DatasetError(f"{path}: is empty; its first line must name the columns {','.join(needed)}")
    columns, records = lines[0][1], []
    for line, values in lines[1:]:
        if len(values) != len(columns):
            hint = "; put quotes around a value that holds a comma" if len(values) > len(columns) else ""
            raise DatasetError(
                f"{path}:{line}: {len(values)} values where the header names {len(columns)} columns{hint}"
            )
        records.append((f"{path}:{line}", values))
    return Table(path, columns, records, [name for name in columns if name and name not in known])


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


def _read_parquet(path: str, known: Sequence[str], numbers: Sequence[str]) -> Table:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(f"{path}: Parquet needs the extra `arrow`: pip install 'pyrtrav[arrow]'") from error
    try:
        file = parquet.ParquetFile(path)
        names = [str(name) for name in file.schema_arrow.names]
        columns = [name for name in names if name in known]
        values = file.read(columns=columns).to_pydict()
    except Exception as error:  # pyarrow's own types, which are known only where it is installed
        raise DatasetError(f"{path}: not a readable Parquet file: {error}") from error
    rows = zip(*(values[name] for name in columns), strict=True)
    records = [
        (
            f"{path}:{line}",
            [_cell(path, line, name, value, name in numbers) for name, value in zip(columns, row, strict=True)],
        )
        for line, row in enumerate(rows, 1)
    ]
    return Table(path, columns, records, [name for name in names if name not in known])


def _cell(path: str, line: int, column: str, value: object, number: bool) -> str:
    """A value as text; a missing one is empty. A float is refused: 1.0 or nan is an accident, not a label."""
    if value is None:
        return ""
    if isinstance(value, str | int) or (number and isinstance(value, float)):
        return str(value).strip()
    raise DatasetError(f"{path}:{line}: {column} is {value!r}, a {type(value).__name__}; store the column as text")
