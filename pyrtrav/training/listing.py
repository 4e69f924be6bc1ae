"""What a data folder or a table lists: one row per image that can be opened, and warnings about the rest.

Folders: ``DIR/<class>/<images>``, or ``DIR/<split>/<class>/<images>``; images at any depth below the class
folder, hidden names skipped. A MIRAX slide with its folder, a DICOM series and an OME-Zarr folder count once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyrtrav.errors import DatasetError
from pyrtrav.pyramid.inspect import claims, companions
from pyrtrav.tables import is_table
from pyrtrav.training.manifest import SPLITS, Row, read_table, relative_key

_NAMED = 5
"""How many files a warning names before it only counts."""


def read_rows(path: str, *, keep_all: bool = False) -> tuple[list[Row], list[str]]:
    """Return the rows of a folder (sorted by name) or of a table (in its order), and warnings.

    With ``keep_all`` a table's rows stay also where no reader can open the image: it is to fail, not to vanish.

    Raises:
        DatasetError: missing, unreadable, or not in the layout that the module describes.
        ConfigError: a Parquet table without pyarrow.
    """
    warnings: list[str] = []
    if os.path.isdir(path):
        return _folder_rows(path, warnings), warnings
    if not os.path.exists(path):
        raise DatasetError(f"{path}: no such file or folder; name a folder with a folder per class, or a table")
    if not is_table(path):
        raise DatasetError(f"{path}: is neither a folder with a folder per class nor a .csv or .parquet table")
    listed = read_table(path, warnings)
    return _openable(listed, os.path.dirname(path), warnings, keep_all), warnings


def _some(paths: Sequence[str], folder: str) -> str:
    """How many, and the first few, relative to the folder."""
    names = ", ".join(relative_key(path, folder) for path in paths[:_NAMED])
    return f"{len(paths)} ({names}{', ...' if len(paths) > _NAMED else ''})"


def _warn_unclaimed(paths: Sequence[str], folder: str, warnings: list[str]) -> None:
    if paths:
        warnings.append(f"{folder}: left out, as no reader can open it: {_some(paths, folder)}")


# Class folders.


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies directly in a folder, sorted by name, without hidden names and the parts of other images."""

    images: list[str]
    folders: list[str]
    others: list[str]


def _list_folder(folder: str) -> Listing:
    found = Listing([], [], [])
    parts: set[str] = set()
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith(".") or path in parts:
            continue
        if claims(path):
            found.images.append(path)
            parts |= companions(path)
        elif os.path.isdir(path):
            found.folders.append(path)
        else:
            found.others.append(path)
    # The data folder `a` of a slide `a.mrxs` comes before it.
    lists = (found.images, found.folders, found.others)
    return Listing(*([path for path in paths if path not in parts] for paths in lists))


def _folder_rows(folder: str, warnings: list[str]) -> list[Row]:
    """The images of ``folder/<class>`` or ``folder/<split>/<class>``."""
    top = _list_folder(folder)
    loose = list(top.images)
    roots: list[tuple[str | None, list[str]]] = [(None, top.folders)]
    splits = [path for path in top.folders if os.path.basename(path) in SPLITS]
    if splits:
        _check_only_splits(top, splits)
        below = {path: _list_folder(path) for path in splits}
        roots = [(os.path.basename(path), listing.folders) for path, listing in below.items()]
        loose += [path for listing in below.values() for path in listing.images]
    unclaimed: list[str] = []
    rows = [
        row
        for split, class_folders in roots
        for class_folder in class_folders
        for row in _class_rows(folder, split, class_folder, unclaimed)
    ]
    if not rows:
        raise DatasetError(f"{folder}: holds no class folders with images; put images into {folder}/<class>/")
    _warn_unclaimed(unclaimed, folder, warnings)
    if loose:
        warnings.append(f"{folder}: left out, as they lie outside the class folders: {_some(loose, folder)}")
    return rows


def _check_only_splits(top: Listing, splits: Sequence[str]) -> None:
    others = [path for path in top.folders if path not in splits]
    if others:
        beside = ", ".join(os.path.basename(path) for path in splits)
        raise DatasetError(
            f"{others[0]}: stands beside the splits ({beside}); put every class folder below train, val or "
            "test, or use a table if that is the name of a class"
        )


def _class_rows(folder: str, split: str | None, class_folder: str, unclaimed: list[str]) -> list[Row]:
    images: list[str] = []
    for listing in walk(class_folder):
        images += listing.images
        unclaimed += listing.others
    if not images and split in (None, "train"):
        raise DatasetError(f"{class_folder}: no image in it can be opened; add images or remove the class folder")
    keys = sorted((relative_key(path, folder), path) for path in images)
    label = os.path.basename(class_folder)
    return [Row(path, key, label, split, None, class_folder) for key, path in keys]


def walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[Listing]:
    """The folder and those below it; a link back to a folder above is not followed."""
    here = os.path.realpath(folder)
    if here in above:
        return
    listing = _list_folder(folder)
    yield listing
    for below in listing.folders:
        yield from walk(below, above | {here})


# Tables.


def _openable(listed: Sequence[Row], folder: str, warnings: list[str], keep_all: bool) -> list[Row]:
    """The rows whose images can be opened, each image once."""
    _check_present(listed)
    rows: list[Row] = []
    unclaimed: list[str] = []
    repeated: list[str] = []
    seen: dict[str, Row] = {}
    for row in listed:
        first = seen.get(row.path)
        if first is not None:
            _check_agree(first, row)
            if first.path == row.path:
                repeated.append(row.path)
        elif keep_all or claims(row.path):
            rows.append(row)
            seen |= dict.fromkeys(companions(row.path), row)
            seen[row.path] = row
        else:
            unclaimed.append(row.path)
    _check_classes_left(listed, rows)
    _warn_unclaimed(unclaimed, folder, warnings)
    if repeated:
        warnings.append(f"{folder}: listed more than once, used once: {_some(repeated, folder)}")
    return rows


def _check_classes_left(listed: Sequence[Row], rows: Sequence[Row]) -> None:
    left = {row.label for row in rows}
    for row in listed:
        if row.label not in left:
            raise DatasetError(
                f"{row.source}: class {row.label!r} has no image that can be opened, beginning with "
                f"{row.path}; replace its images or remove its rows"
            )


def _check_present(rows: Sequence[Row]) -> None:
    missing = [row for row in rows if not os.path.exists(row.path)]
    if missing:
        others = f" (and of {len(missing) - 1} other rows)" if len(missing) > 1 else ""
        raise DatasetError(
            f"{missing[0].source}: no such file: {missing[0].path}{others}; paths are relative to the table's folder"
        )


def _check_agree(first: Row, second: Row) -> None:
    """Two rows for one image (the same path, or two files of one DICOM series) say the same."""
    for name in ("label", "split", "group"):
        one, two = getattr(first, name), getattr(second, name)
        if one != two:
            raise DatasetError(
                f"{second.source}: {second.path} has {name} {two!r}, but {one!r} at {first.source}; "
                "keep one of the rows"
            )
