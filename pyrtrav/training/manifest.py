"""Rows of training data from a table: CSV, or Parquet with the extra `arrow`.

Columns: ``path`` (relative to the table's folder, or absolute), ``label``, and, if wanted, ``split`` and
``group``. Nothing here looks at an image; a complaint names table and line (in Parquet the row, from 1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pyrtrav.errors import DatasetError, nearest_name
from pyrtrav.tables import Table, parse_table

SPLITS = ("train", "val", "test")

COLUMNS = ("path", "label", "split", "group")


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


def relative_key(path: str, folder: str) -> str:
    """Return the path relative to the folder, with ``/``."""
    below = os.path.join(folder, "")
    if path.startswith(below) and os.path.normpath(path) == path:
        return path[len(below) :].replace(os.sep, "/")  # the usual case: what follows asks the system twice
    return os.path.relpath(path, folder).replace(os.sep, "/")


def read_table(path: str, warnings: list[str]) -> list[Row]:
    """Return every row in the table's order, whatever its path leads to; adds to the warnings.

    Args:
        path: absolute.

    Raises:
        DatasetError: missing columns, a damaged line, an empty path or label, an unknown split.
        ConfigError: a Parquet file without pyarrow.
    """
    table = parse_table(path, COLUMNS, needed=("path", "label"))
    _check_filled(table)
    if table.unused:
        warnings.append(f"{path}: columns that are not used: {', '.join(table.unused)}")
    return [_row(table, where, values) for where, values in table.records]


def _row(table: Table, where: str, values: Sequence[str]) -> Row:
    fields = dict(zip(table.columns, values, strict=True))
    folder = os.path.dirname(table.path)
    image = os.path.normpath(os.path.join(folder, fields["path"]))
    if "\0" in image:
        raise DatasetError(f"{where}: the path holds a zero byte; the table may be damaged")
    split, group = fields.get("split") or None, fields.get("group") or None
    if split is not None and split not in SPLITS:
        raise DatasetError(f"{where}: unknown split {split!r}{nearest_name(split, SPLITS)}")
    return Row(image, relative_key(image, folder), fields["label"], split, group, where)


def _check_filled(table: Table) -> None:
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
