"""Which labelled images a model is judged on.

The data look as for training (a folder with a folder for each class, or a table), but nothing is divided: the test
images are those that the data call so. A class may be missing, and an image that a table lists is judged, whether it
can be opened or not. The class names must be the model's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from pyrtrav.errors import ConfigError, DatasetError, nearest_name
from pyrtrav.training.data import Example, Split, check_contents, check_groups, load_dataset
from pyrtrav.training.folds import one_fold
from pyrtrav.training.listing import read_rows
from pyrtrav.training.manifest import SPLITS, Row

ALL = "all"
"""Every image, whatever its split."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The images to judge on; their labels are indices into the model's classes."""

    source: str
    """Absolute path of the folder or table."""
    split: str
    """``train``, ``val``, ``test`` or ``all``."""
    examples: tuple[Example, ...]
    warnings: tuple[str, ...]


def load_held_out(
    source: str | Path,
    classes: Sequence[str],
    split: str | None = None,
    *,
    training_seed: int | None = None,
    fold: str | None = None,
) -> HeldOut:
    """Return the images of a split: by default ``test`` if there is one, else ``val``, else everything.

    Args:
        source: a folder or a table, as for training.
        classes: the model's class names; the data's must be among them, in any order.
        split: ``train``, ``val``, ``test`` or ``all``.
        training_seed: where the data give no such split, ``train`` and ``val`` are those that training with this seed
            makes of them.
        fold: of cross-validation, that the model was trained in: ``train`` and ``val`` are that fold's, whatever the
            data say.

    Raises:
        DatasetError: the data cannot be used, lack the split, or name a class that the model does not know.
        ConfigError: an unknown split.
    """
    if split is not None and split not in (*SPLITS, ALL):
        raise ConfigError(f"unknown split {split!r}{nearest_name(split, (*SPLITS, ALL))}")
    path = os.path.abspath(source)
    rows, warnings = read_rows(path, keep_all=True)
    if not rows:
        raise DatasetError(f"{path}: lists no image that can be opened")
    given = [name for name in SPLITS if any(row.split == name for row in rows)]
    if fold is not None and split is None and "test" not in given:
        split = "val"
    if split in ("train", "val") and (split not in given or fold is not None) and training_seed is not None:
        return _as_trained(path, classes, split, training_seed, fold)
    check_groups(rows)
    check_contents(rows, warnings)
    chosen = split or next((name for name in ("test", "val") if name in given), ALL)
    if chosen not in (*given, ALL):
        raise DatasetError(
            f"{path}: has no images of the split {chosen!r}; it has {', '.join(given) or 'no splits'}, or all of them "
            "with --split all"
        )
    if chosen in (ALL, "train"):
        warnings.append(f"{path}: {_of(chosen)} are evaluated; those that the model was trained on flatter the result")
    kept = [row for row in rows if chosen in (ALL, row.split)]
    _check_classes(kept, classes)
    index = {name: number for number, name in enumerate(classes)}
    examples = (
        # An image without a split is given the name that no figure depends on.
        Example(row.path, index[row.label], cast(Split, row.split or "test"), row.group, row.source)
        for row in kept
    )
    return HeldOut(path, chosen, tuple(examples), tuple(warnings))


def _of(split: str) -> str:
    return "all images" if split == ALL else f"the images of {split}"


def _as_trained(path: str, classes: Sequence[str], split: str, seed: int, fold: str | None) -> HeldOut:
    """The part that training with this seed has made of data without that split, or in that fold."""
    dataset = load_dataset(path, seed=seed)
    if fold is not None:
        dataset = one_fold(dataset, fold, seed)
    examples = dataset.split(split)
    _check_labels({dataset.classes[example.label]: example.source for example in examples}, classes)
    index = [classes.index(name) if name in classes else -1 for name in dataset.classes]
    renamed = tuple(replace(example, label=index[example.label]) for example in examples)
    note = f"{path}: names no {split}; evaluated is what training with seed {seed} makes {split} of it"
    if fold is not None:
        note = f"{path}: evaluated is {split} of fold {fold}, in which the model was trained, with seed {seed}"
    return HeldOut(path, split, renamed, (*dataset.warnings, note))


def _check_classes(rows: Sequence[Row], classes: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.label, row.source)
    _check_labels(first, classes)


def _check_labels(first: dict[str, str], classes: Sequence[str]) -> None:
    """``first`` says where each class of the data stands first."""
    unknown = [name for name in first if name not in classes]
    if unknown:
        raise DatasetError(
            f"{first[unknown[0]]}: the model does not know the class{'es' if len(unknown) > 1 else ''} "
            f"{', '.join(map(repr, sorted(unknown)))}; it knows {', '.join(map(repr, classes))}"
        )
