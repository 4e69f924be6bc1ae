"""Labelled images for training: from class folders or a table to examples with a split.

Nothing here decodes a pixel. What cannot be right (one class, a class without images, one content under two
labels, a patient on both sides) is a DatasetError that names file and line; what may be right is a warning.

Simplified: the split is by hash, so it is about 20 % and not exactly 20 %; in return it does not depend on
the order of the files, and a new image moves no other (but see `validation_units`).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from pyrtrav.errors import ConfigError, DatasetError, nearest_name
from pyrtrav.pyramid.inspect import companions
from pyrtrav.training.listing import read_rows
from pyrtrav.training.manifest import SPLITS, Row, relative_key

Split = Literal["train", "val", "test"]

VALIDATION_SHARE = 0.2
"""Of each class, where no split is given."""

_HEAD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Example:
    """One image to learn from."""

    path: str
    """Absolute."""
    label: int
    """Index into the dataset's classes."""
    split: Split
    group: str | None
    """Images of one group (a patient) are on one side of the split; None where it stands alone."""
    source: str
    """``table:line``, or the class folder."""
    key: str = ""
    """Path relative to the table or the data folder: an image's name wherever the data lie."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Class names, examples in the order of the table or of the sorted folders, and warnings."""

    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    warnings: tuple[str, ...]
    rule: str = "as given"
    """How training and validation images were told apart, in words."""
    fold: str | None = None
    """Of cross-validation, as ``2/5``."""

    def split(self, name: str) -> list[Example]:
        """Return the examples of ``train``, ``val`` or ``test``."""
        if name not in SPLITS:
            raise ConfigError(f"unknown split {name!r}{nearest_name(name, SPLITS)}")
        return [example for example in self.examples if example.split == name]


def load_dataset(source: str | Path, *, seed: int = 0) -> Dataset:
    """Return the labelled images of a folder of class folders, or of a CSV or Parquet table.

    Args:
        source: a folder with ``<class>/<images>`` or ``train/<class>/<images>`` and so on in it, or a table
            with the columns ``path,label`` and, if wanted, ``split,group``.
        seed: of the split into train and val, where none is given.

    Raises:
        DatasetError: the data cannot be used; names file and line, and what to do.
        ConfigError: a Parquet table without pyarrow.
    """
    path = os.path.abspath(source)
    rows, warnings = read_rows(path)
    classes = _classes(rows, path)
    _check_splits(rows)
    check_groups(rows)
    is_given = any(row.split == "val" for row in rows)
    rows = _with_validation(rows, seed, path, warnings)
    check_contents(rows, warnings)
    index = {name: number for number, name in enumerate(classes)}
    examples = (Example(r.path, index[r.label], cast(Split, r.split), r.group, r.source, r.key) for r in rows)
    rule = "as given" if is_given else f"about {VALIDATION_SHARE:.0%} by hash of path or group, seed {seed}"
    return Dataset(tuple(classes), tuple(examples), tuple(warnings), rule)


# What must hold.


def _classes(rows: Sequence[Row], source: str) -> list[str]:
    classes = sorted({row.label for row in rows})
    if not classes:
        raise DatasetError(f"{source}: lists no image that can be opened")
    if len(classes) == 1:
        raise DatasetError(f"{source}: only one class, {classes[0]!r}; training needs at least two")
    return classes


def _check_splits(rows: Sequence[Row]) -> None:
    """Where splits are given, whatever is to be judged has been trained on."""
    if all(row.split is None for row in rows):
        return
    trained = {row.label for row in rows if row.split == "train"}
    for row in rows:
        if row.label not in trained:
            raise DatasetError(
                f"{row.source}: class {row.label!r} stands in {row.split}, but not in train; "
                "add training images of it or remove it"
            )


def check_groups(rows: Sequence[Row]) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        if row.group is None:
            continue
        first = seen.setdefault(row.group, row)
        if first.split != row.split:
            raise DatasetError(
                f"{row.source}: group {row.group!r} is in {row.split}, but in {first.split} at "
                f"{first.source}; put all images of a group into one split"
            )


# Validation images.


def _with_validation(rows: list[Row], seed: int, source: str, warnings: list[str]) -> list[Row]:
    """The rows with every split filled in: where there is no val, a part of train becomes it."""
    given = {row.split for row in rows}
    if "val" in given:
        absent = sorted({row.label for row in rows} - {row.label for row in rows if row.split == "val"})
        if absent:
            warnings.append(f"{source}: no validation images of {', '.join(map(repr, absent))}")
        return rows
    if None not in given:
        warnings.append(f"{source}: no split val; {VALIDATION_SHARE:.0%} of train become it")
    units: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.split != "test":
            units[row.label].add(_unit(row))
    _check_divisible(rows, units)
    chosen = validation_units(units, seed)
    return [
        row if row.split == "test" else replace(row, split="val" if _unit(row) in chosen else "train") for row in rows
    ]


def _unit(row: Row) -> str:
    """What moves as one: the group, else the image by its relative path."""
    return row.group or row.key


def _check_divisible(rows: Sequence[Row], units: Mapping[str, AbstractSet[str]]) -> None:
    for label in sorted(units):
        if len(units[label]) > 1:
            continue
        members = [row for row in rows if row.label == label and row.split != "test"]
        what = (
            "has only one image"
            if len(members) == 1
            else f"has {len(members)} images, but all of group {members[0].group!r}, which stays on one side"
        )
        raise DatasetError(
            f"{members[0].source}: class {label!r} {what}; training and validation need one each: "
            "add images, or give a split with both"
        )


def validation_units(classes: Mapping[str, AbstractSet[str]], seed: int) -> set[str]:
    """Return the units (groups, or relative paths) that validate, about 20 % of each class's.

    A unit's side follows from the seed and its own name, so that adding an image moves no other. No rule can
    keep that up for the smallest classes: one whose units all fall on one side gives the other its nearest
    unit, until another falls there.

    Raises:
        DatasetError: groups with several classes leave no way to give every class both sides.
    """
    place = {unit: fraction(seed, unit) for units in classes.values() for unit in units}
    chosen = {unit for unit in place if place[unit] < VALIDATION_SHARE}
    for to_validation in (True, False):
        for label in sorted(classes):
            units = classes[label]
            if any((unit in chosen) == to_validation for unit in units):
                continue
            for unit in sorted(units, key=lambda unit: (place[unit], unit), reverse=not to_validation):
                if not _is_last(unit, classes, chosen):
                    chosen ^= {unit}
                    break
            else:
                raise DatasetError(
                    f"class {label!r}: its groups cannot be divided so that every class is in training and "
                    "in validation; give the split yourself, in a table's column `split`"
                )
    return chosen


def fraction(seed: int, unit: str) -> float:
    """Return a number in 0..1 that follows from the seed and the name."""
    digest = hashlib.sha256(f"{seed}:{unit}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _is_last(unit: str, classes: Mapping[str, AbstractSet[str]], chosen: AbstractSet[str]) -> bool:
    """Whether a class would have none left on the unit's side."""
    side = unit in chosen
    return any(
        unit in units and not any((other in chosen) == side for other in units if other != unit)
        for units in classes.values()
    )


# The same content twice.


def check_contents(rows: Sequence[Row], warnings: list[str]) -> None:
    """One content has one label; where it stands in two splits, that is a warning.

    Full contents are compared only where sizes and beginnings are equal.
    """
    groups = [list(rows)]
    for key in (_size, _beginning, _content):
        groups = [alike for group in groups for alike in _grouped(key, group) if _conflict(alike)]
    leaks = []
    for first, *others in groups:
        for row in others:
            if row.label != first.label:
                raise DatasetError(
                    f"{row.source}: {row.path} has the same content as {first.path} ({first.source}), but "
                    f"label {row.label!r} instead of {first.label!r}; keep the right one"
                )
        other = next(row for row in others if row.split != first.split)
        leaks.append(f"{first.path} ({first.split}) and {other.path} ({other.split})")
    if leaks:
        more = f", and {len(leaks) - 1} other pairs" if len(leaks) > 1 else ""
        warnings.append(f"the same content in two splits flatters the result: {leaks[0]}{more}; keep one of them")


def _conflict(group: Sequence[Row]) -> bool:
    return len({(row.label, row.split) for row in group}) > 1


def _grouped(key: Callable[[Row], Hashable], rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        try:
            groups[key(row)].append(row)
        except OSError as error:
            raise DatasetError(f"{row.source}: {row.path} cannot be read: {error.strerror or error}") from error
    return list(groups.values())


def _size(row: Row) -> Hashable:
    """Of a file, its bytes; of a folder, the names and bytes of the files directly in it."""
    if not os.path.isdir(row.path):
        return os.path.getsize(row.path)
    with os.scandir(row.path) as entries:
        return tuple(sorted((entry.name, entry.stat().st_size) for entry in entries if entry.is_file()))


def _beginning(row: Row) -> Hashable:
    """Of a file, a checksum of its first 64 KiB; of a folder, the names and bytes of all files below it."""
    if os.path.isdir(row.path):
        return tuple(sorted((name, os.path.getsize(path)) for name, path in _files(row.path)))
    with open(row.path, "rb") as file:
        return zlib.crc32(file.read(_HEAD_BYTES))  # alike by chance: then the whole contents tell


def _content(row: Row) -> Hashable:
    """SHA-256 of everything that the image consists of, in an order that its own file names do not change."""
    members = [member for root in (row.path, *companions(row.path)) for member in _files(root)]
    digests = []
    for name, path in members:
        with open(path, "rb") as file:
            digests.append((name, hashlib.file_digest(file, "sha256").digest()))
    return tuple(sorted(digests))


def _files(root: str) -> Iterator[tuple[str, str]]:
    """Every file below the folder by its name in it; a file itself has the empty name."""
    if not os.path.isdir(root):
        yield "", root
        return
    for folder, _, names in os.walk(root, onerror=_raise):
        for name in names:
            path = os.path.join(folder, name)
            yield relative_key(path, root), path


def _raise(error: OSError) -> None:
    raise error
