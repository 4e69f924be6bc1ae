"""Labelled images for training: from class folders or a table to examples with a split.

Nothing here decodes a pixel. What cannot be right (one class, a class without images, one content under two
labels, a patient on both sides) is a DatasetError that names file and line; what may be right is a warning.

Simplified: the split is by hash, so it is about 20 % and not exactly 20 %; in return it does not depend on
the order of the files, and a new image moves no other (but see `validation_units`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from pyrtrav.errors import ConfigError, DatasetError, nearest_name
from pyrtrav.training.contents import check_labels, equal_contents, leaks
from pyrtrav.training.listing import read_rows
from pyrtrav.training.manifest import SPLITS, Row

Split = Literal["train", "val", "test"]

VALIDATION_SHARE = 0.2
"""Of each class, where no split is given."""


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
    split_warnings: tuple[str, ...] = ()
    """Those of the warnings that are about this split: another has its own."""
    alike: tuple[tuple[str, ...], ...] = ()
    """Paths of images that have the same content, a tuple for each content."""

    @property
    def digest(self) -> str:
        """SHA-256 of the relative paths, labels and groups of all but the test images, in whatever order they are
        listed: with the seed it says who trains and who validates, wherever the data lie."""
        divided = sorted(
            (example.key or example.path, self.classes[example.label], example.group or "")
            for example in self.examples
            if example.split != "test"
        )
        return hashlib.sha256(json.dumps(divided).encode()).hexdigest()

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
    split_warnings: list[str] = []
    rows = _with_validation(rows, seed, path, split_warnings)
    alike = equal_contents(rows)
    check_labels(alike)
    split_warnings += leaks(alike)
    index = {name: number for number, name in enumerate(classes)}
    examples = (Example(r.path, index[r.label], cast(Split, r.split), r.group, r.source, r.key) for r in rows)
    rule = "as given" if is_given else f"about {VALIDATION_SHARE:.0%} by hash of path or group, seed {seed}"
    return Dataset(
        tuple(classes),
        tuple(examples),
        (*warnings, *split_warnings),
        rule,
        split_warnings=tuple(split_warnings),
        alike=tuple(tuple(row.path for row in group) for group in alike),
    )


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
