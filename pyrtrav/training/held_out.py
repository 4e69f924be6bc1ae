"""Which labelled images a model is judged on.

The data look as for training (a folder with a folder for each class, or a table), but nothing is divided: the test
images are those that the data call so. A class may be missing, and an image that a table lists is judged, whether it
can be opened or not. The class names must be the model's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from pyrtrav.errors import ConfigError, DatasetError, nearest_name
from pyrtrav.training.contents import check_labels, equal_contents, leaks
from pyrtrav.training.data import Dataset, Example, Split, check_groups, load_dataset
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
    training: Mapping[str, Any] | None = None,
) -> HeldOut:
    """Return the images of a split: by default ``test`` if there is one, else ``val``, else everything.

    Args:
        source: a folder or a table, as for training.
        classes: the model's class names; the data's must be among them, in any order.
        split: ``train``, ``val``, ``test`` or ``all``.
        training: what the model file says of its training. Where these are the data that the model was trained on
            (by their digest), ``train`` and ``val`` are as they were in its fold of cross-validation, or, where the
            data give no such split, as its seed divides them.

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
    fold = (training or {}).get("fold")
    wanted = "val" if fold is not None and split is None and "test" not in given else split
    if wanted in ("train", "val") and (wanted not in given or fold is not None):
        dataset = _trained_on(path, training or {})
        if dataset is not None:
            return _as_trained(dataset, path, classes, wanted)
        if fold is not None:
            warnings.append(
                f"{path}: not the data that the model was trained on in fold {fold}, so that no part is its own"
            )
    check_groups(rows)
    alike = equal_contents(rows)
    check_labels(alike)
    warnings += leaks(alike)
    chosen = split or next((name for name in ("test", "val") if name in given), ALL)
    if chosen not in (*given, ALL):
        raise DatasetError(
            f"{path}: has no images of the split {chosen!r}; it has {', '.join(given) or 'no splits'}, or all of them "
            "with --split all (only the data that a model was trained on are divided as in its training)"
        )
    if chosen in (ALL, "train"):
        warnings.append(f"{path}: {_of(chosen)} are evaluated; those that the model was trained on flatter the result")
    kept = [row for row in rows if chosen in (ALL, row.split)]
    return HeldOut(path, chosen, _examples(kept, classes), tuple(warnings))


def limited(held_out: HeldOut, limit: int | None, seed: int) -> HeldOut:
    """Return no more than so many of the images, drawn by the seed; they stay in order.

    Raises:
        ConfigError: none would be left.
    """
    if limit is None:
        return held_out
    if limit < 1:
        raise ConfigError(f"--limit must be 1 or more, got {limit}")
    count = len(held_out.examples)
    if count <= limit:
        return held_out
    drawn = np.sort(np.random.default_rng([seed, count]).permutation(count)[:limit]).tolist()
    note = f"{held_out.source}: evaluated are {limit:,} of {count:,} images, drawn by seed {seed}"
    examples = tuple(held_out.examples[number] for number in drawn)
    return replace(held_out, examples=examples, warnings=(*held_out.warnings, note))


def _of(split: str) -> str:
    return "all images" if split == ALL else f"the images of {split}"


def _trained_on(path: str, training: Mapping[str, Any]) -> Dataset | None:
    """The data, divided as in a model's training; None where they are not those that it was trained on."""
    seed, fold = training.get("seed"), training.get("fold")
    if seed is None:
        return None
    try:
        dataset = load_dataset(path, seed=seed)
    except DatasetError:
        return None  # and training would have stopped
    if dataset.digest != training.get("data_digest"):
        return None
    return dataset if fold is None else one_fold(dataset, fold, seed)


def _as_trained(dataset: Dataset, path: str, classes: Sequence[str], split: str) -> HeldOut:
    examples = dataset.split(split)
    _check_labels({dataset.classes[example.label]: example.source for example in examples}, classes)
    index = [classes.index(name) if name in classes else -1 for name in dataset.classes]
    renamed = tuple(replace(example, label=index[example.label]) for example in examples)
    note = f"{path}: evaluated is {split} as in the model's training: {dataset.rule}"
    return HeldOut(path, split, renamed, (*dataset.warnings, note))


def _examples(rows: Sequence[Row], classes: Sequence[str]) -> tuple[Example, ...]:
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.label, row.source)
    _check_labels(first, classes)
    index = {name: number for number, name in enumerate(classes)}
    return tuple(
        # An image without a split is given the name that no figure depends on.
        Example(row.path, index[row.label], cast(Split, row.split or "test"), row.group, row.source)
        for row in rows
    )


def _check_labels(first: dict[str, str], classes: Sequence[str]) -> None:
    """``first`` says where each class of the data stands first."""
    unknown = [name for name in first if name not in classes]
    if unknown:
        raise DatasetError(
            f"{first[unknown[0]]}: the model does not know the class{'es' if len(unknown) > 1 else ''} "
            f"{', '.join(map(repr, sorted(unknown)))}; it knows {', '.join(map(repr, classes))}"
        )
