"""Records as a table: nested names joined by dots, lists as JSON. Read and written in pieces, whatever their number."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pyrtrav.errors import ConfigError
from pyrtrav.files import written_whole
from pyrtrav.tree import Record

ROWS_AT_ONCE = 1000

Records = Callable[[], Iterator[Record]]
"""Gives the records from the beginning, each time."""


def flatten(record: Record, prefix: str = "") -> dict[str, Any]:
    """Return the record as one row."""
    row: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            row |= flatten(value, f"{prefix}{name}.")
        else:
            row[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return row


def write_csv(records: Records, path: Path) -> None:
    """Write every record as a row; the columns are those of all of them."""
    columns = list(dict.fromkeys(name for record in records() for name in flatten(record)))
    options: Any = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
    with written_whole(path) as beside, beside.open("w", **options) as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(map(flatten, records()))


def write_parquet(records: Records, path: Path) -> None:
    """Write every record as a row; a column's type is that of all its values.

    Raises:
        ConfigError: the extra ``arrow`` is missing.
    """
    arrow = require_arrow()
    pieces = (arrow.Table.from_pylist(piece).schema for piece in _pieces(records()))
    schema = arrow.schema([])
    for piece in pieces:
        schema = arrow.unify_schemas([schema, piece], promote_options="permissive")
    with written_whole(path) as beside, arrow.parquet.ParquetWriter(beside, schema) as writer:
        for rows in _pieces(records()):
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))


def _pieces(records: Iterator[Record]) -> Iterator[list[dict[str, Any]]]:
    rows = map(flatten, records)
    while piece := list(islice(rows, ROWS_AT_ONCE)):
        # A table's columns are those of its first row.
        names = dict.fromkeys(name for row in piece for name in row)
        yield [{name: _as_text(row.get(name)) for name in names} for row in piece]


def _as_text(value: Any) -> Any:
    """Parquet's text is UTF-8, which the name of a file need not be."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def require_arrow() -> Any:
    """Return pyarrow.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet needs the extra `arrow`: pip install 'pyrtrav[arrow]'") from error
    return pyarrow
